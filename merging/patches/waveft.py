"""waveft: WaveFT as peft saves it: a few wavelet coefficients of each delta.

Keys: `waveft_spectrum` (n,) in each module. Which n of the coefficients they are is drawn from random_loc_seed by
torch's CPU generator; use_idwt false adds them to W's entries as they are.

Source: arXiv:2505.12532; peft 0.21 `tuners/waveft/{config,layer,model}.py`.
"""

from adapterhub.merging.skeleton import SEED, Folded, by_module, flag, folded_kind, number, one_of, optional, whole

_FAMILIES = [
    *(f"db{order}" for order in range(1, 39)),
    *(f"sym{order}" for order in range(2, 21)),
    *(f"coif{order}" for order in range(1, 18)),
]
"""Families of wavelets that peft knows."""

SPEC = folded_kind(
    Folded(
        peft_type="WAVEFT",
        settings={
            "n_frequency": whole(1, 1 << 30),
            "n_frequency_pattern": optional(by_module(whole(1, 1 << 30))),
            "scaling": number(-1e9, 1e9),
            "wavelet_family": one_of(*_FAMILIES),
            "use_idwt": flag,
            "random_loc_seed": SEED,
            "proportional_parameters": flag,
        },
        is_shared=True,
    ),
    name="waveft",
    title="WaveFT",
    summary="A few wavelet coefficients of each delta",
    source="arXiv:2505.12532, as peft saves it",
    stem="waveft_",
    required=("waveft_spectrum",),
    shown=("n_frequency", "scaling", "wavelet_family", "use_idwt", "random_loc_seed"),
)
