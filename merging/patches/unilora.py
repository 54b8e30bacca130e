"""unilora: Uni-LoRA as peft saves it: all low-rank factors drawn from one short vector.

Keys: `base_model.unilora_theta_d` (d,) alone; which entry of it stands where in each module's A and B is drawn from
proj_seed, module after module in the order of the live model, so that the base's own configuration must name a model of
transformers. With save_indices each module also holds `unilora_indices_A` (r, in), `unilora_indices_B` (out, r) and
scales of the same shapes.

Source: arXiv:2506.00799; peft 0.21 `tuners/unilora/{config,layer,model}.py`.
"""

from adapterhub.merging.skeleton import RANK, SEED, Folded, flag, folded_kind, whole

SPEC = folded_kind(
    Folded(
        peft_type="UNILORA",
        settings={"r": RANK, "theta_d_length": whole(1, 1 << 30), "proj_seed": SEED, "save_indices": flag},
        is_shared=True,
        is_ordered=True,
        ignored=frozenset({"init_theta_d_bound"}),
    ),
    name="unilora",
    title="Uni-LoRA",
    summary="All low-rank factors drawn from one short vector",
    source="arXiv:2506.00799, as peft saves it",
    stem="unilora_",
    banks=("unilora_theta_d",),
    shown=("r", "theta_d_length", "save_indices"),
    dtypes={name: frozenset({"U8", "U16", "I16", "I32", "I64"}) for name in ("unilora_indices_A", "unilora_indices_B")},
)
