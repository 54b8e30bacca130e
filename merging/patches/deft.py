"""deft: DEFT as peft saves it: a few directions taken out of W and others put in.

Keys: `deft_P` (out, r) and `deft_R` (r, in) in each module; W' = W + Q (s·R - Q'ᵀ W), where Q and Q' are made of P by
decomposition_method, and s is alpha / r, or 1 without alpha.

Source: peft 0.21 `tuners/deft`.
"""

from adapterhub.merging.skeleton import RANK, Folded, flag, folded_kind, one_of, optional, whole

SPEC = folded_kind(
    Folded(
        peft_type="DEFT",
        settings={
            "r": RANK,
            "decomposition_method": one_of("relu", "qr"),
            "alpha": optional(whole(1, 1 << 30)),
            "para": flag,
        },
        effect="affine",
        ignored=frozenset({"init_scale"}),
    ),
    name="deft",
    title="DEFT",
    summary="A few directions taken out of W and others put in",
    source="peft",
    stem="deft_",
    required=("deft_P",),
    shown=("r", "alpha", "decomposition_method", "para"),
)
