"""road: RoAd as peft saves it: rotations of pairs of outputs, weights and biases alike.

Keys: `road_theta` and `road_alpha` (out / 2,) in each module, (out,) for road_2 and (2·out,) for road_4; W' = R W and
b' = R b with R of 2 x 2 blocks over the pairs that group_size makes.

Source: arXiv:2409.00119 eq. 2; peft 0.21 `tuners/road/{config,layer,model}.py`.
"""

from adapterhub.merging.skeleton import Folded, folded_kind, one_of, whole

SPEC = folded_kind(
    Folded(
        peft_type="ROAD",
        settings={"variant": one_of("road_1", "road_2", "road_4"), "group_size": whole(2, 65536)},
        effect="affine",
        has_bias=True,
    ),
    name="road",
    title="RoAd",
    summary="Rotations of pairs of outputs, weights and biases alike",
    source="arXiv:2409.00119 eq. 2, as peft saves it",
    stem="road_",
    required=("road_theta", "road_alpha"),
    shown=("variant", "group_size"),
)
