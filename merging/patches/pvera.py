"""pvera: PVeRA as peft saves it: VeRA whose inner vector is a distribution, of which the mean is merged.

As VeRA, but lambda_d and the shared A have twice the rows: the first half gives the mean, the second the logarithm of
the variance. An adapter that samples at inference is no fixed weight.

Source: arXiv:2512.07703; peft 0.21 `tuners/pvera/{config,layer,model}.py`, get_delta_weight.
"""

from collections.abc import Mapping
from typing import Any

from adapterhub.merging.peft_adapter import Tuner, peft_kind
from adapterhub.merging.shared_banks import Banks, check_banks

_BANKS = Banks("pvera", halves=2)


def _why_not(config: Mapping[str, Any]) -> str | None:
    if config.get("sample_at_inference"):
        return "sample_at_inference is set: it draws new weights at each pass; set it to false to merge the mean"
    return None


SPEC = peft_kind(
    Tuner(
        peft_type="PVERA",
        fields={".pvera_lambda_b": "b", ".pvera_lambda_d": "d"},
        required=(("b",), ("d",)),
        banks=_BANKS.names,
        shown=("r", "save_projection", "projection_prng_key"),
        check=check_banks,
        contradictions=_BANKS.contradictions,
        ranks=lambda adapter, module: module.fields["d"].numel // 2,
        why_not=_why_not,
        terms=_BANKS.terms,
    ),
    name="pvera",
    title="PVeRA",
    summary="VeRA with a distribution for its inner vector, of which the mean counts",
    source="arXiv:2512.07703, as peft saves it",
    has_factors=True,
)
