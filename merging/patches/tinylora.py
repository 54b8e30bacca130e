"""tinylora: TinyLoRA as peft saves it: a handful of numbers, spread over the base's main directions.

Keys: `base_model.tinylora_v.<group>` (u,), shared by the modules of a group, which are counted in the order of the live
model; and in each module, unless save_projection is false, `tinylora_A` (r, in), `tinylora_B` (out, r) of the base's
own singular value decomposition and `tinylora_P` (u, r, r). Without them peft takes the decomposition and the draws
again. Embeddings that peft would adapt too are found only where the file holds their projections.

Source: arXiv:2602.04118; peft 0.21 `tuners/tinylora/{config,layer,model}.py`.
"""

from adapterhub.merging.skeleton import RANK, SEED, Folded, flag, folded_kind, number, whole

SPEC = folded_kind(
    Folded(
        peft_type="TINYLORA",
        settings={
            "r": RANK,
            "u": whole(1, 1 << 20),
            "weight_tying": number(0, 1),
            "projection_seed": SEED,
            "save_projection": flag,
        },
        is_shared=True,
        is_ordered=True,
        ignored=frozenset({"init_v_bound"}),
    ),
    name="tinylora",
    title="TinyLoRA",
    summary="A handful of numbers, spread over the base's main directions",
    source="arXiv:2602.04118, as peft saves it",
    stem="tinylora_",
    banks=("tinylora_v.",),
    shown=("r", "u", "weight_tying", "save_projection"),
)
