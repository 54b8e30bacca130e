"""beft: BEFT as peft saves it: a trained vector added to a module's bias.

Keys: `beft_bias` (1, out). A base whose module has no bias has nowhere to put it; peft refuses to merge it as well.

Source: arXiv:2509.15974; peft 0.21 `tuners/beft/layer.py`, merge.
"""

from collections.abc import Iterator

from adapterhub.merging.errors import NotFoldable
from adapterhub.merging.patch import SiteTerm
from adapterhub.merging.peft_adapter import Adapter, Module, Sites, Tuner, peft_kind, reshaped


def _contradictions(adapter: Adapter, module: Module) -> Iterator[str]:
    shape = module.fields["bias"].shape
    if len(shape) != 2 or shape[0] != 1:
        yield f"beft_bias is {shape}; (1, out) is expected"


def _terms(adapter: Adapter, module: Module, sites: Sites) -> Iterator[SiteTerm]:
    """One dense term on the bias. Raises NotFoldable where the base has none."""
    sites.shape(module.path)  # a module that the base lacks altogether is an unknown site
    if sites.find(f"{module.path}.bias") is None:
        raise NotFoldable(f"{module.path}: the base's module has no bias that beft_bias could be added to")
    delta = reshaped(module.fields["bias"], module.fields["bias"].shape[1:])
    yield SiteTerm(sites.bias(module.path, delta.shape), "dense", {"delta": delta})


SPEC = peft_kind(
    Tuner(
        peft_type="BEFT",
        fields={".beft_bias": "bias"},
        required=(("bias",),),
        contradictions=_contradictions,
        terms=_terms,
    ),
    name="beft",
    title="BEFT",
    summary="Vectors added to the biases of some modules",
    source="arXiv:2509.15974, as peft saves it",
)
