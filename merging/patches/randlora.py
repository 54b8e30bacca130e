"""randlora: RandLoRA as peft saves it: full-rank sums of scaled random bases that all modules share.

Keys: `randlora_lambda` (r, n) and `randlora_gamma` (n, min(out, in)) with n bases a module; the shared bases
`randlora_A` (r, 1, s) and `randlora_B` (l, n, r) are saved beside them, once for all and again in each module, unless
save_projection is false: then peft draws them from projection_prng_key, whose numbers are those of torch's CPU
generator. Their sizes are those of the largest module, so all are folded at once.

Source: arXiv:2502.00987 eq. 5; peft 0.21 `tuners/randlora/{config,layer,model}.py`.
"""

from adapterhub.merging.skeleton import RANK, SEED, Folded, flag, folded_kind, whole

SPEC = folded_kind(
    Folded(
        peft_type="RANDLORA",
        settings={
            "r": RANK,
            "randlora_alpha": whole(1, 1 << 30),
            "projection_prng_key": SEED,
            "save_projection": flag,
            "sparse": flag,
            "very_sparse": flag,
        },
        is_shared=True,
    ),
    name="randlora",
    title="RandLoRA",
    summary="Full-rank sums of scaled random bases that all modules share",
    source="arXiv:2502.00987 eq. 5, as peft saves it",
    stem="randlora_",
    banks=("randlora_A", "randlora_B"),
    required=("randlora_lambda", "randlora_gamma"),
    shown=("r", "randlora_alpha", "sparse", "very_sparse", "save_projection"),
)
