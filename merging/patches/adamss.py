"""adamss: AdaMSS as peft saves it: low-rank updates of several subspaces of W's rows, biases among them.

Keys: `adamss_A.<k>` (rank, r), `adamss_B.<k>` (rows, rank) for each subspace and `adamss_newB` (r, in), with one column
more where the module has a bias, in each module. Which rows belong to a subspace is found again from the base, by a
singular value decomposition and k-means with random_seed, for which scikit-learn must be installed.

Source: peft 0.21 `tuners/adamss`.
"""

from adapterhub.merging.skeleton import RANK, SEED, Folded, flag, folded_kind, number, one_of, optional, whole

SPEC = folded_kind(
    Folded(
        peft_type="ADAMSS",
        settings={
            "r": RANK,
            "num_subspaces": whole(1, 65536),
            "subspace_rank": RANK,
            "init_weights": optional(one_of("orthogonal")),
            "use_dynamic_rank": flag,
            "svd_threshold": number(0, 1),
            "random_seed": SEED,
        },
        has_bias=True,
        ignored=frozenset(
            {
                "use_asa",
                "asa_target_subspaces",
                "init_warmup",
                "final_warmup",
                "mask_interval",
                "asa_importance_beta",
                "asa_uncertainty_beta",
                "asa_schedule_exponent",
                "total_step",
            }
        ),
    ),
    name="adamss",
    title="AdaMSS",
    summary="Low-rank updates of several subspaces of W's rows, biases among them",
    source="peft",
    stem="adamss_",
    required=("adamss_newB",),
    shown=("r", "num_subspaces", "subspace_rank"),
)
