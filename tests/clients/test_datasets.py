"""The datasets library, unmodified, told that this hub holds no datasets."""

from tests.clients.conftest import Run


def test_datasets_are_refused_in_a_clear_sentence(run_scenario: Run, repo_id: str) -> None:
    done = run_scenario("datasets_are_refused", repo_id, module="tests.clients.scenarios_datasets")
    assert done.stderr.count("datasets are not kept here; this hub holds models and patches only") == 1
