"""ln_tuning: layer norms that were trained themselves, as peft's LN tuning saves them: whole values, no deltas.

Keys: `ln_tuning_layers.weight` and, where the norm has one, `ln_tuning_layers.bias`.

Source: arXiv:2312.11420; peft 0.21 `tuners/ln_tuning/layer.py`, merge.
"""

from collections.abc import Iterator

from adapterhub.merging.patch import SiteTerm
from adapterhub.merging.peft_adapter import Adapter, Module, Sites, Tuner, peft_kind


def _terms(adapter: Adapter, module: Module, sites: Sites) -> Iterator[SiteTerm]:
    """One replace term for each parameter of the norm."""
    for name, value in sorted(module.fields.items()):
        site, options = sites.place(f"{module.path}.{name}")
        sites.check_shape(site, value.shape, options)
        yield SiteTerm(site, "replace", {"value": value}, options=options)


SPEC = peft_kind(
    Tuner(
        peft_type="LN_TUNING",
        fields={".ln_tuning_layers.weight": "weight", ".ln_tuning_layers.bias": "bias"},
        required=(("weight",),),
        effect="replace",
        terms=_terms,
    ),
    name="ln_tuning",
    title="LN tuning",
    summary="Layer norms trained themselves, stored whole",
    source="arXiv:2312.11420, as peft saves it",
)
