"""c3a: C³A as peft saves it: circulant blocks, each stored as the one row that its rows shift.

Keys: `c3a_kernel` (out / b, in / b, b), always float32; the delta is the block-circulant matrix divided by the number
of inputs. The block size b may differ by module (block_size_pattern); the shape tells it.

Source: arXiv:2407.19342; peft 0.21 `tuners/c3a/{config,layer,utils}.py`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from adapterhub.merging.patch import SiteTerm
from adapterhub.merging.patterns import matching, read_pattern, whole
from adapterhub.merging.peft_adapter import CONFIG, Adapter, Module, Sites, Tuner, peft_kind


def _check(config: Mapping[str, Any], file: str) -> None:
    whole(config.get("block_size", 256), f"{file}: block_size", most=2**24)
    read_pattern(config.get("block_size_pattern") or {}, f"{file}: block_size_pattern")


def _contradictions(adapter: Adapter, module: Module) -> Iterator[str]:
    shape = module.fields["kernel"].shape
    pattern = read_pattern(adapter.config.get("block_size_pattern") or {}, CONFIG)
    b = matching(pattern, module.path, adapter.config.get("block_size", 256))
    if len(shape) != 3:
        yield f"c3a_kernel is {shape}; (out / {b:g}, in / {b:g}, {b:g}) is expected"
    elif shape[2] != b:
        yield f"its blocks are of {shape[2]}, {CONFIG} says {b:g} (block_size or block_size_pattern)"


def _terms(adapter: Adapter, module: Module, sites: Sites) -> Iterator[SiteTerm]:
    """One circulant term."""
    m, n, b = module.fields["kernel"].shape
    site, options = sites.matrix(module.path, m * b, n * b)
    yield SiteTerm(site, "circulant", module.fields, 1.0 / (n * b), options)


SPEC = peft_kind(
    Tuner(
        peft_type="C3A",
        fields={".c3a_kernel": "kernel"},
        required=(("kernel",),),
        shown=("block_size",),
        check=_check,
        contradictions=_contradictions,
        terms=_terms,
    ),
    name="c3a",
    title="C³A",
    summary="Circulant blocks added to some modules",
    source="arXiv:2407.19342, as peft saves it",
)
