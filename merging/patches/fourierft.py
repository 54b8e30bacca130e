"""fourierft: FourierFT as peft saves it: a few coefficients of each delta's discrete Fourier transform.

Keys: `fourierft_spectrum` (n,) in each module. Which n of the out·in frequencies they are is drawn from random_loc_seed
by torch's CPU generator, so a fold depends on torch's way of drawing permutations.

Source: arXiv:2405.03003 sec. 3.2; peft 0.21 `tuners/fourierft/{config,layer,model}.py`.
"""

from collections.abc import Mapping
from typing import Any

from adapterhub.merging.skeleton import SEED, Folded, by_module, folded_kind, number, optional, whole


def _why_not(config: Mapping[str, Any]) -> str | None:
    if "random_loc_seed" in config and config["random_loc_seed"] is None:
        return "random_loc_seed is null: which frequencies the numbers belong to was drawn at random and is lost"
    return None


SPEC = folded_kind(
    Folded(
        peft_type="FOURIERFT",
        settings={
            "n_frequency": whole(1, 1 << 30),
            "n_frequency_pattern": optional(by_module(whole(1, 1 << 30))),
            "scaling": number(-1e9, 1e9),
            "random_loc_seed": optional(SEED),
        },
    ),
    name="fourierft",
    title="FourierFT",
    summary="A few coefficients of each delta's discrete Fourier transform",
    source="arXiv:2405.03003 sec. 3.2, as peft saves it",
    stem="fourierft_",
    required=("fourierft_spectrum",),
    shown=("n_frequency", "scaling", "random_loc_seed"),
    why_not=_why_not,
)
