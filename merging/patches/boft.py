"""boft: BOFT as peft saves it: rotations of W as a product of butterfly factors, and scales of its rows.

Keys: `boft_R` (factors, blocks, b, b), of which the skew-symmetric part counts, and `boft_s` (out, 1) in each module;
W' = (R W) ⊙ s with R the product of the factors' Cayley transforms.

Source: arXiv:2311.06243 eq. 4; peft 0.21 `tuners/boft/{config,layer,model}.py`.
"""

from adapterhub.merging.skeleton import Folded, folded_kind, whole

SPEC = folded_kind(
    Folded(
        peft_type="BOFT",
        settings={
            "boft_block_size": whole(0, 65536),
            "boft_block_num": whole(0, 65536),
            "boft_n_butterfly_factor": whole(0, 64),
        },
        effect="affine",
    ),
    name="boft",
    title="BOFT",
    summary="Rotations of W as a product of butterfly factors, and scales of its rows",
    source="arXiv:2311.06243 eq. 4, as peft saves it",
    stem="boft_",
    required=("boft_R", "boft_s"),
    shown=("boft_block_size", "boft_block_num", "boft_n_butterfly_factor"),
)
