"""vera: VeRA as peft saves it: two random matrices that all modules share, and two trained vectors for each.

A module's delta is diag(lambda_b)·B·diag(lambda_d)·A with its corner of the shared A and B, which the file holds or,
with save_projection false, which follow from projection_prng_key and the shapes of all touched modules of the base.

Source: arXiv:2310.11454 eq. 2; peft 0.21 `tuners/vera/{config,layer,model}.py`.
"""

from adapterhub.merging.peft_adapter import Tuner, peft_kind
from adapterhub.merging.shared_banks import Banks, check_banks

_BANKS = Banks("vera")

SPEC = peft_kind(
    Tuner(
        peft_type="VERA",
        fields={".vera_lambda_b": "b", ".vera_lambda_d": "d"},
        required=(("b",), ("d",)),
        banks=_BANKS.names,
        shown=("r", "save_projection", "projection_prng_key"),
        check=check_banks,
        contradictions=_BANKS.contradictions,
        ranks=lambda adapter, module: module.fields["d"].numel,
        terms=_BANKS.terms,
    ),
    name="vera",
    title="VeRA",
    summary="Two trained vectors a module around random factors that all share",
    source="arXiv:2310.11454, as peft saves it",
    has_factors=True,
)
