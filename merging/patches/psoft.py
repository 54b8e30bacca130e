"""psoft: PSOFT as peft saves it: a rotation inside W's main singular directions.

Keys: `psoft_R.weight` (r·(r-1)/2,), and with psoft_mag_a and psoft_mag_b `psoft_R.vector_a` and `.vector_b` (r,), in
each module; W' = W + s·B (R - I) A, where A and B come from the singular value decomposition of the base, taken again.

Source: arXiv:2505.11235; peft 0.21 `tuners/psoft/{config,layer,model}.py`.
"""

from adapterhub.merging.skeleton import RANK, SEED, Folded, flag, folded_kind, number, one_of, optional, whole

SPEC = folded_kind(
    Folded(
        peft_type="PSOFT",
        settings={
            "r": RANK,
            "psoft_alpha": whole(1, 1 << 30),
            "ab_svd_init": one_of("psoft_init", "pissa_init"),
            "psoft_svd": one_of("full", "lowrank"),
            "psoft_svd_lowrank_niter": whole(0, 1000),
            "random_seed": SEED,
            "psoft_orth": flag,
            "psoft_mag_a": flag,
            "psoft_mag_b": flag,
            "use_cayley_neumann": flag,
            "num_cayley_neumann_terms": whole(1, 1000),
            "cayley_neumann_eps": optional(number(0, 1e9)),
        },
    ),
    name="psoft",
    title="PSOFT",
    summary="A rotation inside W's main singular directions",
    source="arXiv:2505.11235, as peft saves it",
    stem="psoft_",
    required=("psoft_R.weight",),
    shown=("r", "psoft_alpha", "ab_svd_init", "psoft_svd", "psoft_orth"),
)
