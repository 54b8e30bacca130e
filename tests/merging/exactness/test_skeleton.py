"""The tuners that peft folds on a skeleton, against what it merges inside the whole model in float64.

The child's work runs in this process here; that the confined child does the same is `test_skeleton_child.py`'s.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft.tuners.boft.layer
import pytest
import torch
from peft import HiraConfig, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from adapterhub.merging import peft_child, sandbox
from tests.merging.exactness.architectures import ARCHITECTURES, Architecture
from tests.merging.exactness.compare import DTYPES, check_logits, check_weights, prepared, record_refusal

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to"),
    pytest.mark.filterwarnings("ignore:Specified to not save"),
    pytest.mark.filterwarnings("ignore:Specified to not load"),
]


@dataclass(frozen=True)
class Case:
    """One configuration of a tuner. refuses: reasons, by architecture, why peft does not adapt it, in peft's words."""

    peft_type: str
    options: Mapping[str, Any]
    refuses: Mapping[str, str] = field(default_factory=dict)


_NO_CONV1D = {"gpt2": "Conv1D"}
_GLORA = ("config_A_B", "config_C", "config_D_E")
_PLAIN_LINEAR = {"gpt2": "Conv1D", "falcon": "FalconLinear.* is not a plain torch.nn.Linear"}

CASES = {
    "randlora": Case("RANDLORA", {"r": 2}),
    "randlora (drawn)": Case("RANDLORA", {"r": 2, "save_projection": False, "sparse": True}),
    "unilora": Case("UNILORA", {"r": 2, "theta_d_length": 64}),
    "unilora (indices)": Case("UNILORA", {"r": 2, "theta_d_length": 64, "save_indices": True}),
    "tinylora": Case("TINYLORA", {"r": 2, "u": 4, "weight_tying": 0.5}),
    "tinylora (drawn)": Case("TINYLORA", {"r": 2, "u": 4, "save_projection": False}),
    "fourierft": Case("FOURIERFT", {"n_frequency": 20, "scaling": 40.0}),
    "waveft": Case("WAVEFT", {"n_frequency": 20, "wavelet_family": "db2", "proportional_parameters": True}),
    "hira": Case("HIRA", {"r": 2}),
    "boft": Case("BOFT", {"boft_block_size": 4}, _NO_CONV1D),
    "boft (two factors)": Case("BOFT", {"boft_block_size": 4, "boft_n_butterfly_factor": 2}, _NO_CONV1D),
    "road": Case("ROAD", {"variant": "road_1", "group_size": 4}, _NO_CONV1D),
    "road (road_4)": Case("ROAD", {"variant": "road_4", "group_size": 2}, _NO_CONV1D),
    "psoft": Case("PSOFT", {"r": 4}, _NO_CONV1D),
    "osf": Case("OSF", {"effective_rank": 4}, _NO_CONV1D),
    "deft": Case("DEFT", {"r": 2}),
    "deft (qr)": Case("DEFT", {"r": 2, "decomposition_method": "qr", "alpha": 4}),
    "frod": Case("FROD", {"sparse_rate": 0.05, "progressbar": False}),
    "glora": Case("GLORA", {"r": 2}, _PLAIN_LINEAR),
    "glora (vectors)": Case(
        "GLORA", {"config_A_B": "vector", "config_C": "vector", "config_D_E": "vector"}, _PLAIN_LINEAR
    ),
    "peanut": Case("PEANUT", {"r": 2, "depth": 1, "act_fn": "tanh"}, _NO_CONV1D),
    "adamss": Case("ADAMSS", {"r": 8, "num_subspaces": 2}, _NO_CONV1D),
}


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child's function without a child, and its request through JSON as it would go."""

    def call(module: str, request: Mapping[str, Any], folder: Path, limits: sandbox.Limits) -> Any:
        return json.loads(json.dumps(peft_child.fold(json.loads(json.dumps(request)), folder)))

    monkeypatch.setattr(sandbox, "call", call)


class Kernel:
    """What peft's CUDA kernel computes for BOFT; without one it has one butterfly factor alone."""

    @staticmethod
    def forward(blocks: torch.Tensor) -> list[torch.Tensor]:
        return [torch.stack([torch.block_diag(*one) for one in blocks])]  # type: ignore[no-untyped-call]


@pytest.fixture(autouse=True)
def a_kernel_for_boft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peft.tuners.boft.layer, "_FBD_CUDA", Kernel)


FAST = ("gpt2", "llama", "bert")


def _cells() -> Iterator[Any]:
    """Every variant, architecture and dtype; what differs little from a neighbour is slow."""
    for variant, case in CASES.items():
        for name in [one for one in ARCHITECTURES if one not in case.refuses]:
            for dtype in DTYPES:
                is_fast = name in FAST or (dtype == "float32" and "(" not in variant)
                marks = () if is_fast else (pytest.mark.slow,)
                yield pytest.param(variant, name, dtype, id=f"{variant}-{name}-{dtype}", marks=marks)


def _config(case: Case, architecture: Architecture) -> Any:
    kind: Any = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(case.peft_type)]
    return kind(target_modules=list(architecture.linear), **case.options)


@pytest.mark.parametrize(("variant", "name", "dtype"), list(_cells()))
def test_folds_as_peft_merges(variant: str, name: str, dtype: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES[name]
    base, patch, adapted = prepared(architecture, dtype, _config(CASES[variant], architecture), tmp_path)
    check_weights(variant, architecture, dtype, base, patch, adapted, tmp_path)


@pytest.mark.parametrize(
    ("variant", "name"), [(variant, name) for variant, case in CASES.items() for name in case.refuses]
)
def test_what_is_not_measured_peft_itself_refuses(variant: str, name: str) -> None:
    case, architecture = CASES[variant], ARCHITECTURES[name]
    model: Any = architecture.make()
    if case.peft_type == "OSF":  # says nothing, and adapts nothing
        adapted: Any = get_peft_model(model, _config(case, architecture))
        assert not [one for one, _ in adapted.named_parameters() if "osf_svd_params" in one]
        record_refusal(variant, name, "peft adapts no Conv1D with it, and says nothing")
        return
    with pytest.raises((TypeError, ValueError, NotImplementedError), match=case.refuses[name]) as refusal:
        get_peft_model(model, _config(case, architecture))
    record_refusal(variant, name, f"peft refuses: {str(refusal.value).split('.')[0]}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [one for one in ARCHITECTURES if ARCHITECTURES[one].embedding])
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_hira_on_an_embedding_folds_to_the_live_adapters_logits(name: str, dtype: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES[name]
    config = HiraConfig(target_modules=[str(architecture.embedding), architecture.linear[0]], r=2)
    base, patch, adapted = prepared(architecture, dtype, config, tmp_path)
    check_logits("hira (embedding)", architecture, dtype, base, patch, adapted, tmp_path)
