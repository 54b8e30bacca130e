"""miss: MiSS as peft saves it, once called BONE: one thin matrix repeated along the inputs, or blocks that act on W.

Keys: `miss_block` (`bone_block` in BONE). Standard: (r, out), and input j gets row j mod r: exactly a LoRA of rank r
whose A repeats the identity. init_weights "mini": (r, mini_r), repeated along the outputs too. init_weights "bat": (out
/ r, r, r), and each r x r block V of W becomes V + V·B + B, with the B of its row of blocks.

Source: arXiv:2409.15371; peft 0.21 `tuners/miss/{config,layer}.py`, get_delta_weight and get_delta_weight_miss.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from adapterhub.merging.checkpoint import TensorHandle
from adapterhub.merging.encodings import Array, as_array
from adapterhub.merging.errors import InvalidPatch, NotFoldable, ShapeMismatch
from adapterhub.merging.patch import SiteTerm
from adapterhub.merging.patterns import whole
from adapterhub.merging.peft_adapter import CONFIG, Adapter, Module, Sites, Tuner, computed, floats, peft_kind

_MODES = ("bat", "mini")


def _check(config: Mapping[str, Any], file: str) -> None:
    r = whole(config.get("r", 64), f"{file}: r")
    whole(config.get("mini_r", 1), f"{file}: mini_r")
    init = config.get("init_weights", True)
    if not isinstance(init, bool) and init not in _MODES:
        raise InvalidPatch(
            f"{file}: init_weights is {str(init)[:80]!r} with r {r}; true, false, 'bat' or 'mini' is expected"
        )


def _contradictions(adapter: Adapter, module: Module) -> Iterator[str]:
    shape, r = module.fields["block"].shape, adapter.config.get("r", 64)
    mode = adapter.config.get("init_weights", True)
    if mode == "bat":
        if len(shape) != 3 or shape[1:] != (r, r):
            yield f"miss_block is {shape}; (out / {r}, {r}, {r}) is expected, as {CONFIG} says init_weights 'bat'"
    elif len(shape) != 2 or shape[0] != r or (mode == "mini" and shape[1] != adapter.config.get("mini_r", 1)):
        expected = f"({r}, {adapter.config.get('mini_r', 1) if mode == 'mini' else 'out'})"
        yield f"miss_block is {shape}; {expected} is expected, as {CONFIG} says init_weights {mode!r}"


def _terms(adapter: Adapter, module: Module, sites: Sites) -> Iterator[SiteTerm]:
    """One lowrank term, or a block_affine one."""
    block = module.fields["block"]
    shape = sites.shape(module.path)
    if len(block.shape) == 3:
        out = block.shape[0] * block.shape[1]
        site, options = sites.matrix(module.path, out, shape[-1] if shape else out)
        if shape is not None and shape[-1] % block.shape[1]:
            raise ShapeMismatch(site, (out, block.shape[1]), sites.base.name if sites.base else "", shape)
        yield SiteTerm(site, "block_affine", {"B": block}, options=options)
        return
    if shape is None:
        raise NotFoldable(f"{module.path}: MiSS repeats its block along the base's inputs; read it with its base")
    r = block.shape[0]
    site, options = sites.matrix(module.path, _outputs(adapter, module, shape), shape[-1])
    fields = {"A": _repeated_identity(r, shape[-1]), "B": _outputs_by_rank(block, shape[0])}
    yield SiteTerm(site, "lowrank", fields, options=options)


def _outputs(adapter: Adapter, module: Module, shape: tuple[int, ...]) -> int:
    """The outputs that the block fits: its own, or those of the base where it divides them and may repeat."""
    columns = module.fields["block"].shape[1]
    is_repeated = adapter.config.get("init_weights") == "mini" and shape[0] % columns == 0
    return shape[0] if is_repeated else columns


def _repeated_identity(r: int, inputs: int) -> TensorHandle:
    return floats("A", (r, inputs), lambda: np.arange(r)[:, None] == np.arange(inputs) % r)


def _outputs_by_rank(block: TensorHandle, outputs: int) -> TensorHandle:
    """The block as B (out, r), its columns repeated as often as they fit."""
    r, columns = block.shape

    def make() -> Array:
        return np.tile(as_array(block).T, (outputs // columns, 1))

    return computed(block.name, block.dtype, (outputs, r), make)


SPEC = peft_kind(
    Tuner(
        peft_type="MISS",
        also_called=frozenset({"BONE"}),
        fields={".miss_block": "block", ".bone_block": "block"},
        required=(("block",),),
        shown=("r", "mini_r", "init_weights"),
        check=_check,
        contradictions=_contradictions,
        ranks=lambda adapter, module: (
            module.fields["block"].shape[0] if len(module.fields["block"].shape) == 2 else None
        ),
        terms=_terms,
    ),
    name="miss",
    title="MiSS",
    summary="One thin matrix repeated along a module's inputs, or blocks that act on its weight",
    source="arXiv:2409.15371, as peft saves it",
    has_factors=True,
)
