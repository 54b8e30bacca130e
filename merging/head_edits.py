"""LoFiT's edits of attention heads as terms: z + A ⊙ z + v before the output projection W, b is W', b' after it.

W' = W · diag(1 + A) and b' = b + W · v. With A alone W' is a `scale` term, which sees what acted on W before. Where v
is there too, W' and b' are values worked out for the base's own W, marked `affine`: they come first in a sequence.

Source: arXiv:2406.01563 sec. 3.
"""

from collections.abc import Iterator, Mapping

from adapterhub.merging.checkpoint import Checkpoint, TensorHandle
from adapterhub.merging.encodings import Array, as_floats
from adapterhub.merging.errors import ShapeMismatch
from adapterhub.merging.patch import SiteTerm
from adapterhub.merging.peft_adapter import computed
from adapterhub.merging.sites import is_conv1d, naming

Edits = Mapping[str, Mapping[str, TensorHandle]]
"""A and v, (heads, head width) each, either or both, by the path of the output projection that follows."""


def missing_bias(edits: Edits, base: Checkpoint) -> str | None:
    """Why these edits cannot become weights of the base: the bias that would hold W · v and is not there. Else None."""
    names = naming([f"{path}.weight" for path in edits], base)
    for path, fields in edits.items():
        bias = names.site(f"{path}.weight").removesuffix("weight") + "bias"
        if "v" in fields and bias not in base.tensors and as_floats(fields["v"]).any():
            return f"{path} adds W · v to what it gives, and base {base.name!r} has no {bias} to hold it"
    return None


def folded(edits: Edits, base: Checkpoint) -> Iterator[SiteTerm]:
    """The terms on the base's projections and biases. Raises UnknownSite, ShapeMismatch.

    The base must have the biases: `missing_bias` says.
    """
    names = naming([f"{path}.weight" for path in edits], base)
    for path, fields in edits.items():
        site = names.site(f"{path}.weight")
        W, is_transposed = base.tensors[site], bool(is_conv1d(site.removesuffix(".weight"), base))
        width = W.shape[0 if is_transposed else -1]
        for name, handle in fields.items():
            if handle.numel != width:
                raise ShapeMismatch(f"{path}.{name}", handle.shape, base.name, W.shape)
        if "v" not in fields or site.removesuffix("weight") + "bias" not in base.tensors:
            yield _factors(site, fields["A"], is_transposed)
        else:
            yield from _values(site, base, fields, is_transposed)


def _factors(site: str, A: TensorHandle, is_transposed: bool) -> SiteTerm:
    col = computed(A.name, "F64", (A.numel,), lambda: 1.0 + as_floats(A).reshape(-1))
    return SiteTerm(site, "scale", {"col": col}, options={"transpose": True} if is_transposed else {})


def _values(site: str, base: Checkpoint, fields: Mapping[str, TensorHandle], is_transposed: bool) -> Iterator[SiteTerm]:
    """W' and b' in float64, computed when they are read."""
    W, bias_name = base.tensors[site], site.removesuffix("weight") + "bias"
    v, b = fields["v"], base.tensors[bias_name]

    def matrix() -> Array:
        found: Array = as_floats(W).reshape(W.shape)
        return found.T if is_transposed else found  # (out, in)

    def scaled() -> Array:
        product: Array = matrix() * (1.0 + as_floats(fields["A"]).reshape(-1))
        return product.T if is_transposed else product

    def shifted() -> Array:
        total: Array = as_floats(b).reshape(-1) + matrix() @ as_floats(v).reshape(-1)
        return total

    frozen = {"affine": True}
    if "A" in fields:
        weight = computed(fields["A"].name, "F64", W.shape, scaled)
        yield SiteTerm(site, "replace", {"value": weight}, options=frozen)
    else:  # W stays, and whatever else acts on it must still come after
        yield SiteTerm(site, "replace", {"value": W}, options=frozen)
    yield SiteTerm(bias_name, "replace", {"value": computed(v.name, "F64", b.shape, shifted)}, options=frozen)
