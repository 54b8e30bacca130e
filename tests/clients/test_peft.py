"""PEFT, unmodified, on adapters at the root and in folders of a repository."""

from tests.clients.conftest import Run


def test_adapters_are_pushed_and_loaded_by_name(run_scenario: Run, repo_id: str) -> None:
    run_scenario("adapters_on_a_base", repo_id, module="tests.clients.scenarios_peft")
