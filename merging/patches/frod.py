"""frod: FRoD as peft saves it: new singular values, and a sparse rotation, in a basis that like modules share.

Keys: `frod_lambda_l` (in,) and `frod_lambda_s_values` (nnz,) in each module; banks `frod_V.<category>` (in, in),
`frod_s_indices.<category>` (2, nnz) int64 and `frod_s_size.<category>` (2,) int64, unless save_projection is false. The
basis of a category is a joint decomposition of all its modules' weights, so all are folded at once.

Source: doi:10.1609/aaai.v40i31.39813; peft 0.21 `tuners/frod/{config,layer,model}.py`.
"""

from adapterhub.merging.skeleton import SEED, Folded, flag, folded_kind, number

SPEC = folded_kind(
    Folded(
        peft_type="FROD",
        settings={
            "projection_prng_key": SEED,
            "save_projection": flag,
            "sparse_rate": number(0, 1),
            "regularization_alpha": number(0, 1e9),
        },
        effect="affine",
        is_shared=True,
        is_ordered=True,
        ignored=frozenset({"runtime_offload_base_weight"}),
    ),
    name="frod",
    title="FRoD",
    summary="New singular values, and a sparse rotation, in a basis that like modules share",
    source="doi:10.1609/aaai.v40i31.39813, as peft saves it",
    stem="frod_",
    banks=("frod_V.", "frod_s_indices.", "frod_s_size."),
    required=("frod_lambda_l", "frod_lambda_s_values"),
    shown=("sparse_rate", "save_projection"),
    may_be_empty=frozenset({"frod_lambda_s_values"}),
)
