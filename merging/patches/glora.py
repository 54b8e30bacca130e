"""glora: GLoRA as peft saves it: W and b scaled, shifted, and b moved along W.

Keys: `glora_A` to `glora_E` in each module, each `.Xd` and `.Xu` (low-rank), `.X` (a vector or one number) or nothing,
as config_A_B, config_C and config_D_E say; W' = W + W ⊙ A + B and b' = b + b ⊙ D + E + W C.

Source: arXiv:2306.07967 eq. 10; peft 0.21 `tuners/glora/{config,layer,model}.py`.
"""

from adapterhub.merging.skeleton import RANK, Folded, folded_kind, one_of

SPEC = folded_kind(
    Folded(
        peft_type="GLORA",
        settings={
            "r": RANK,
            "config_A_B": one_of("lora", "vector", "constant", "none"),
            "config_C": one_of("lora", "vector", "none"),
            "config_D_E": one_of("vector", "constant", "none"),
        },
        effect="affine",
        has_bias=True,
    ),
    name="glora",
    title="GLoRA",
    summary="W and b scaled, shifted, and b moved along W",
    source="arXiv:2306.07967 eq. 10, as peft saves it",
    stem="glora_",
    shown=("r", "config_A_B", "config_C", "config_D_E"),
)
