"""AdapterHub's `adapters`, unmodified, in an environment with the transformers and huggingface_hub that it pins."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.conftest import Run


@pytest.mark.slow
def test_adapters_of_adapterhub_are_pushed_listed_and_loaded(
    run_scenario: Run, environment_of: Callable[[str], Path], repo_id: str
) -> None:
    python = environment_of("adapters")
    run_scenario("adapters_on_a_base", repo_id, module="tests.clients.scenarios_adapters", python=python)
