"""diffusers, unmodified, on a pipeline and the LoRAs of its UNet."""

from tests.clients.conftest import Run


def test_pipelines_and_loras_are_loaded_by_name(run_scenario: Run, repo_id: str) -> None:
    run_scenario("pipelines_and_loras", repo_id, module="tests.clients.scenarios_diffusers")
