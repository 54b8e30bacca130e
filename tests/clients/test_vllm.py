"""vLLM's own resolver and LoRA loader, set as docs/clients.md says, up to the weights in memory: what needs no GPU."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.conftest import Run
from tests.clients.scenarios_page import snippet


@pytest.mark.slow
def test_vllm_resolves_adapters_by_name_and_reads_them(
    run_scenario: Run, environment_of: Callable[[str], Path], repo_id: str
) -> None:
    python = environment_of("vllm")
    exported = re.findall(r"^export (VLLM_\w+)=(.*)$", snippet("vLLM", "bash"), re.M)
    run_scenario("adapters_on_a_base", repo_id, module="tests.clients.scenarios_peft")
    run_scenario(
        "an_adapter_is_resolved_and_read",
        f"{repo_id}-base",
        f"{repo_id}-lora",
        module="tests.clients.scenarios_vllm",
        python=python,
        VLLM_TARGET_DEVICE="cpu",
        **{name: value.replace("lab/", f"{repo_id}-") for name, value in exported},
    )
