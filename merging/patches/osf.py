"""osf: OSF as peft saves it: W's small singular directions, trained while the large ones stay.

Keys: `osf_svd_params.U_low` (out, q), `.S_low` (q,) and `.V_low` (q, in) in each module; the effective_rank largest
components of the base's singular value decomposition stay and are taken again from the base.

Source: arXiv:2504.07097; peft 0.21 `tuners/osf/{config,layer,model}.py`.
"""

from adapterhub.merging.skeleton import Folded, by_module, folded_kind, number, optional

SPEC = folded_kind(
    Folded(
        peft_type="OSF",
        settings={"effective_rank": optional(number(0, 65536)), "rank_pattern": optional(by_module(number(0, 65536)))},
        ignored=frozenset({"target_svd_config"}),
    ),
    name="osf",
    title="OSF",
    summary="W's small singular directions, trained while the large ones stay",
    source="arXiv:2504.07097, as peft saves it",
    stem="osf_",
    required=("osf_svd_params.U_low", "osf_svd_params.S_low", "osf_svd_params.V_low"),
    shown=("effective_rank",),
)
