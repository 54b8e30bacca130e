"""hira: HiRA as peft saves it: W times one plus a low-rank matrix, entry by entry.

Keys: `hira_A` (r, in) and `hira_B` (out, r) in each module, `hira_embedding_A` and `hira_embedding_B` of embeddings; W'
= W ⊙ (1 + B·A). r may differ by module through rank_pattern.

Source: OpenReview TwJrTz9cRS (ICLR 2025) eq. 5; peft 0.21 `tuners/hira/{config,layer,model}.py`.
"""

from adapterhub.merging.skeleton import RANK, Folded, by_module, folded_kind, optional

SPEC = folded_kind(
    Folded(
        peft_type="HIRA",
        settings={"r": RANK, "rank_pattern": optional(by_module(RANK))},
        effect="affine",
    ),
    name="hira",
    title="HiRA",
    summary="W times one plus a low-rank matrix, entry by entry",
    source="OpenReview TwJrTz9cRS (ICLR 2025) eq. 5, as peft saves it",
    stem="hira_",
    shown=("r",),
)
