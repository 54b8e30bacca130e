"""Checkpoints that hold a patch beside the model it was trained on: DSEE's and LoFiT's, as terms of the native format.

DSEE: `<module>_lora_a.weight` (r, in), `_lora_b.weight` (out, r) and `_lora_s.weight_orig` (out, in) under a
`.weight_mask`, all times alpha / r of the configuration beside them; a module whose own weight is stored as
`.weight_orig` with a `.weight_mask` is pruned; what the base lacks, such as a head, comes whole.
LoFiT: `<attention>.attn_A.<head>` and `attn_v.<head>`, (head_dim,) each: z + A ⊙ z + v before the output projection.

Source: VITA-Group/DSEE modeling_bert.py, BertSelfAttention (arXiv:2111.00160); fc2869/lo-fit models/modeling_llama.py
(arXiv:2406.01563). Differs: DSEE's own `add_factorization` leaves out alpha / r and the sparse part.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from adapterhub.merging.encodings import Array, as_array, as_floats
from adapterhub.merging.errors import InvalidPatch
from adapterhub.merging.native import StoredTerm, lowrank, prune, sparse

if TYPE_CHECKING:
    from adapterhub.merging.checkpoint import TensorHandle

_FACTOR = re.compile(r"(?P<module>.+)_lora_(?P<which>[abs])\.weight(?P<part>_orig|_mask)?")
_HEAD = re.compile(r"(?P<attention>.+)\.attn_(?P<which>[Av])\.(?P<number>\d+)")
_HEADS = ("classifier.", "cls.", "score.", "qa_outputs.", "lm_head.")
"""How the names of what is trained whole beside DSEE's factors begin."""
_PROJECTIONS = {"attn": "c_proj", "self_attn": "o_proj", "attention": "dense"}
"""By the attention's name: what its output projection is called."""


FORMATS = ("DSEE", "LoFiT")


def format_of(names: Iterable[str]) -> str | None:
    """ "DSEE" or "LoFiT" where a tensor has such a name, else None."""
    for name in names:
        if _FACTOR.fullmatch(name):
            return "DSEE"
        if _HEAD.fullmatch(name):
            return "LoFiT"
    return None


# ---- DSEE ------------------------------------------------------------------------------------------------------------


def dsee(
    file: str, tensors: Mapping[str, "TensorHandle"], config: Mapping[str, Any]
) -> dict[str, tuple[StoredTerm, ...]]:
    """The terms of each parameter: what stays of it first, then what is added.

    config: config.json, for lora_r and lora_alpha. Raises InvalidPatch, naming what does not fit.
    """
    found: dict[str, dict[str, TensorHandle]] = {}
    for name, handle in tensors.items():
        matched = _FACTOR.fullmatch(name)
        if matched:
            found.setdefault(matched["module"], {})[matched["which"] + (matched["part"] or "")] = handle
    sites: dict[str, tuple[StoredTerm, ...]] = {}
    for module, fields in found.items():
        pruned = _pruned(file, tensors, module)
        sites[f"{module}.weight"] = (*pruned, *_added(f"{file}: {module}", fields, config))
    for name in tensors:
        module = name.removesuffix(".weight_orig")
        if module != name and not _FACTOR.fullmatch(name) and f"{module}.weight" not in sites:
            sites[f"{module}.weight"] = tuple(_pruned(file, tensors, module))
        elif name.startswith(_HEADS) and not name.endswith(("_orig", "_mask")):
            values = {"value": (tensors[name].dtype, as_array(tensors[name]))}
            sites[name] = (StoredTerm("replace", tensors[name].shape, values),)
    return {site: terms for site, terms in sites.items() if terms}


def _added(where: str, fields: Mapping[str, "TensorHandle"], config: Mapping[str, Any]) -> Iterable[StoredTerm]:
    scale = _scaling(where, fields, config)
    if "a" in fields or "b" in fields:
        if "a" not in fields or "b" not in fields or fields["a"].shape[0] != fields["b"].shape[-1]:
            shapes = {which: one.shape for which, one in fields.items()}
            raise InvalidPatch(f"{where}: its factors are {shapes}; a (r, in) and b (out, r) are expected")
        A, B = (as_floats(fields[which]).astype("<f4") for which in "ab")
        yield lowrank(A, B, scale=scale)
    stored = fields.get("s_orig", fields.get("s"))
    if stored is not None:
        values = as_floats(stored).astype("<f4")
        mask = fields.get("s_mask")
        if mask is not None and mask.shape != stored.shape:
            raise InvalidPatch(f"{where}: its sparse part is {stored.shape} and its mask {mask.shape}")
        yield sparse(values if mask is None else values * (as_floats(mask) != 0), scale=scale)


def _scaling(where: str, fields: Mapping[str, "TensorHandle"], config: Mapping[str, Any]) -> float:
    alpha = config.get("lora_alpha")
    r = fields["a"].shape[0] if "a" in fields else config.get("lora_r")
    if not isinstance(alpha, int | float) or not isinstance(r, int) or r < 1:
        raise InvalidPatch(
            f"{where}: config.json says lora_alpha {alpha!r} and lora_r {config.get('lora_r')!r}; both are needed, as "
            "the deltas are times alpha / r: put the config.json that it was trained with beside it"
        )
    return float(alpha) / r


def _pruned(file: str, tensors: Mapping[str, "TensorHandle"], module: str) -> Sequence[StoredTerm]:
    mask = tensors.get(f"{module}.weight_mask")
    if mask is None:
        return ()
    if f"{module}.weight_orig" not in tensors:
        raise InvalidPatch(f"{file}: {module}.weight_mask has no weight_orig beside it")
    return (prune(as_floats(mask) != 0),)


# ---- LoFiT -----------------------------------------------------------------------------------------------------------


def lofit(file: str, tensors: Mapping[str, "TensorHandle"], heads: int) -> dict[str, dict[str, Array]]:
    """A and v (heads, head_dim) by output projection, zero for heads that have none. Raises InvalidPatch.

    heads: of the model's attention.
    """
    found: dict[str, dict[str, dict[int, Array]]] = {}
    for name, handle in tensors.items():
        matched = _HEAD.fullmatch(name)
        if matched:
            fields = found.setdefault(_projection(matched["attention"]), {})
            fields.setdefault(matched["which"], {})[int(matched["number"])] = as_floats(handle).reshape(-1)
    modules: dict[str, dict[str, Array]] = {}
    for module, fields in found.items():
        widths = {len(one) for rows in fields.values() for one in rows.values()}
        numbers = [number for rows in fields.values() for number in rows]
        if len(widths) != 1 or max(numbers) >= heads:
            raise InvalidPatch(f"{file}: {module}: heads {sorted(set(numbers))} of {widths}; {heads} of one width")
        [width] = widths
        modules[module] = {which: _rows(rows, heads, width) for which, rows in fields.items()}
    return modules


def _projection(attention: str) -> str:
    last = attention.rpartition(".")[2]
    return f"{attention}.{_PROJECTIONS.get(last, 'o_proj')}"


def _rows(rows: Mapping[int, Array], heads: int, width: int) -> Array:
    whole = np.zeros((heads, width), np.float32)
    for number, values in rows.items():
        whole[number] = values
    return whole
