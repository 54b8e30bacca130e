"""peft's other tuners on every architecture that peft lets them adapt, against what peft merges in float64.

C3A computes its delta in float32 whatever the model's dtype, by FFTs; ours gathers it, so the difference is peft's.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from tests.merging.exactness.architectures import ARCHITECTURES, Architecture
from tests.merging.exactness.compare import DTYPES, check_logits, check_weights, prepared

pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False but the target module is `Conv1D`"),
    pytest.mark.filterwarnings("ignore:Specified to not save vera_A and vera_B"),
    pytest.mark.filterwarnings("ignore:Specified to not save pvera_A and pvera_B"),
    pytest.mark.filterwarnings("ignore:Invalid `oft_block_size`"),
]

Make = Callable[..., Any]


def linear(kind: Make, **options: Any) -> Callable[[Architecture], Any]:
    """A configuration for all the linear modules of an architecture."""
    return lambda architecture: kind(target_modules=list(architecture.linear), **options)


def ia3(architecture: Architecture) -> Any:
    return peft.IA3Config(
        target_modules=[*architecture.linear, *architecture.feed_forward],
        feedforward_modules=list(architecture.feed_forward),
    )


TUNERS: Mapping[str, Callable[[Architecture], Any]] = {
    "ia3": ia3,
    "vera": linear(peft.VeraConfig, r=6),
    "vera (drawn banks)": linear(peft.VeraConfig, r=6, save_projection=False, projection_prng_key=17),
    "pvera": linear(peft.PveraConfig, r=6),
    "pvera (drawn banks)": linear(peft.PveraConfig, r=6, save_projection=False),
    "loha": linear(peft.LoHaConfig, r=3, alpha=5, rank_pattern={"o_proj": 2}, alpha_pattern={"v_proj": 9}),
    "lokr": linear(peft.LoKrConfig, r=1, alpha=5, decompose_both=True),
    "lokr (whole)": linear(peft.LoKrConfig, r=8, alpha=5, alpha_pattern={"v_proj": 9}),
    "shira": linear(peft.ShiraConfig, r=2, random_seed=3),
    "supertuning": linear(peft.SupertuningConfig, sparsity=0.8),
    "supertuning (low rank)": linear(peft.SupertuningConfig, sparsity=0.9, r=2, lora_alpha=6.0),
    "c3a": linear(peft.C3AConfig, block_size=4, block_size_pattern={"q_proj": 8}),
    "miss": linear(peft.MissConfig, r=4),
    "miss (uneven)": linear(peft.MissConfig, r=5),
    "miss (mini)": linear(peft.MissConfig, r=4, mini_r=4, init_weights="mini"),
    "miss (bat)": linear(peft.MissConfig, r=4, init_weights="bat"),
    "oft": linear(peft.OFTConfig, oft_block_size=4),
    "oft (exact, shared)": linear(peft.OFTConfig, oft_block_size=4, use_cayley_neumann=False, block_share=True),
    "oft (constrained)": linear(peft.OFTConfig, oft_block_size=8, coft=True, eps=0.05, num_cayley_neumann_terms=3),
    "hra": linear(peft.HRAConfig, r=3),
    "hra (Gram-Schmidt)": linear(peft.HRAConfig, r=3, apply_GS=True),
    "adalora": linear(peft.AdaLoraConfig, init_r=5, target_r=2, lora_alpha=7, total_step=10),
    "vblora": linear(peft.VBLoRAConfig, r=3, num_vectors=9, vector_length=4, topk=2),
    "vblora (top weights)": linear(
        peft.VBLoRAConfig, r=3, num_vectors=9, vector_length=4, topk=3, save_only_topk_weights=True
    ),
    "delora": linear(peft.DeloraConfig, r=3, delora_lambda=7, rank_pattern={"v_proj": 2}),
    "gralora": linear(peft.GraloraConfig, r=4, alpha=6, gralora_k=2),
    "gralora (hybrid)": linear(peft.GraloraConfig, r=4, alpha=6, gralora_k=4, hybrid_r=2),
    "beft": linear(peft.BeftConfig),
}


def sites(adapted: Any) -> int:
    return sum(isinstance(one, peft.tuners.tuners_utils.BaseTunerLayer) for one in adapted.modules())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tuner", TUNERS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_folds_as_peft_merges(name: str, tuner: str, dtype: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES[name]
    base, patch, adapted = prepared(architecture, dtype, TUNERS[tuner](architecture), tmp_path)
    check_weights(tuner, architecture, dtype, base, patch, adapted, tmp_path)
