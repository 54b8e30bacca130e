"""diffusers, unmodified, on a pipeline and the LoRAs of its UNet."""

import pytest

from tests.clients.conftest import Run

MODULE = "tests.clients.scenarios_diffusers"


@pytest.mark.slow
def test_pipelines_and_loras_are_loaded_by_name(run_scenario: Run, repo_id: str) -> None:
    run_scenario("pipelines_and_loras", repo_id, module=MODULE)


@pytest.mark.slow
def test_textual_inversions_and_variants_are_loaded_by_name(run_scenario: Run, repo_id: str) -> None:
    run_scenario("textual_inversions_and_variants", repo_id, module=MODULE)
