"""What of a patch is no contradiction and yet looks like a mistake: sentences that warn, from headers and from values.

Values are read one tensor at a time, by their bits a piece at a time where that tells. Never imports torch.
Source: arXiv:2106.09685 sec. 4.1 (B starts at zero); arXiv:2306.07280 (orthogonal R); IEEE 754-2019 sec. 3.4.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal

import numpy as np

from adapterhub.merging.checkpoint import Folder, TensorHandle, open_tensors
from adapterhub.merging.encodings import as_floats
from adapterhub.merging.finiteness import EXPONENTS, PIECE_BYTES
from adapterhub.merging.patch import Facts, SiteTerm

DENSE_FROM = 0.5
"""Share of entries from which a sparse patch is larger than a dense one would be."""
SUBNORMAL_SHARE = 0.1
"""From this share of a tensor's numbers that are not zero, subnormal ones are a flood."""
ORTHOGONAL = 1e-3
"""Up to this entry of |RᵀR - I| a rotation is one."""


def of_headers(facts: Facts) -> Iterator[str]:
    """Warnings from facts alone: mixed dtypes, a sparse patch that is dense, targets without any tensor."""
    floats = {dtype: count for dtype, count in facts.dtypes.items() if dtype in EXPONENTS}
    if facts.kind != "model" and len(floats) > 1:
        told = " and ".join(f"{count} in {dtype}" for dtype, count in sorted(floats.items()))
        yield f"its numbers are stored with different precision, {told}; save all in one dtype unless that is meant"
    density = facts.detail.get("density", 0.0)
    if facts.kind == "sparse" and density > DENSE_FROM:
        yield f"{density:.0%} of the entries it touches are stored; a dense patch would be smaller"
    asked = facts.detail.get("target_modules")
    if isinstance(asked, list | tuple) and facts.targets:
        found = {target.rpartition(".")[2] for target in facts.targets}
        idle = sorted({str(one) for one in asked} - {one for one in asked if str(one).rpartition(".")[2] in found})
        if idle:
            yield f"target_modules names {', '.join(idle[:5])}, and no tensor belongs to it; was all of it saved?"


def of_values(found: Iterable[SiteTerm]) -> Iterator[str]:
    """Warnings from the numbers of a patch's terms, one a rule: how many sites, and which first."""
    sites: dict[str, list[str]] = {sentence: [] for sentence in _RULES}
    count = 0
    for term in found:
        count += 1
        for sentence, is_doubtful in _RULES.items():
            if is_doubtful(term.term, term.fields):
                sites[sentence].append(term.site)
    for sentence, named in sites.items():
        if named:
            yield f"{named[0]}{f' and {len(named) - 1} more' if len(named) > 1 else ''} of {count} sites: {sentence}"


def of_files(folder: Folder, files: Iterable[str]) -> Iterator[str]:
    """A warning for each safetensors file of which a tensor is full of subnormal numbers. Raises BrokenContainer.

    Files, since what terms hold may be computed at cost from the base.
    """
    for file in files:
        if not file.endswith(".safetensors"):
            continue
        flooded = [name for name, one in open_tensors(folder, file)[0].items() if _is_flooded(one)]
        if flooded:
            more = f" and {len(flooded) - 1} more" if len(flooded) > 1 else ""
            yield (
                f"{file}: over {SUBNORMAL_SHARE:.0%} of tensor {flooded[0]}{more} is subnormal, too small for its "
                "dtype; save it as F32"
            )


def _is_untrained(term: str, fields: Mapping[str, TensorHandle]) -> bool:
    return term in ("lowrank", "dora") and "B" in fields and _zeros(fields["B"]) == fields["B"].numel


def _has_explicit_zeros(term: str, fields: Mapping[str, TensorHandle]) -> bool:
    return term == "sparse" and _zeros(fields["val"]) > 0


def _has_negative_magnitude(term: str, fields: Mapping[str, TensorHandle]) -> bool:
    return term == "dora" and bool((as_floats(fields["mag"]) < 0).any())


def _is_no_rotation(term: str, fields: Mapping[str, TensorHandle]) -> bool:
    if term != "rotate":
        return False
    R = as_floats(fields["R"]).astype(np.float64)
    return bool(np.abs(np.swapaxes(R, 1, 2) @ R - np.eye(R.shape[1])).max(initial=0.0) > ORTHOGONAL)


def _is_flooded(handle: TensorHandle) -> bool:
    small = _without(handle, "exponent")
    zeros = _zeros(handle) if small else 0  # most tensors have neither, and are read once
    return small - zeros > SUBNORMAL_SHARE * (handle.numel - zeros)


_RULES: Mapping[str, Callable[[str, Mapping[str, TensorHandle]], bool]] = {
    "B is all zeros, so it changes nothing; was it trained?": _is_untrained,
    "zeros are among the stored values; leave them out": _has_explicit_zeros,
    "a magnitude is negative, which turns an output around; was it trained too fast?": _has_negative_magnitude,
    f"R is no rotation (an entry of |RᵀR - I| is above {ORTHOGONAL:g}), so it stretches too": _is_no_rotation,
}


def _zeros(handle: TensorHandle) -> int:
    return _without(handle, "all but the sign")


def _without(handle: TensorHandle, what: Literal["exponent", "all but the sign"]) -> int:
    """How many of a float tensor's numbers have none of those bits set; 0 for other tensors."""
    if handle.dtype not in EXPONENTS:
        return 0
    name, ones = EXPONENTS[handle.dtype]
    bits = np.frombuffer(handle.read(), name)
    mask = bits.dtype.type(ones if what == "exponent" else np.iinfo(bits.dtype).max >> 1)
    step = PIECE_BYTES // bits.itemsize
    pieces = (bits[start : start + step] for start in range(0, bits.size, step))
    return sum(one.size - int(np.count_nonzero(one & mask)) for one in pieces)
