"""PEFT, unmodified, on adapters at the root and in folders of a repository."""

import pytest

from tests.clients.conftest import Run

MODULE = "tests.clients.scenarios_peft"


def test_adapters_are_pushed_and_loaded_by_name(run_scenario: Run, repo_id: str) -> None:
    run_scenario("adapters_on_a_base", repo_id, module=MODULE)


@pytest.mark.slow
def test_every_shape_of_adapter_is_kept_and_found_by_its_base(run_scenario: Run, repo_id: str) -> None:
    run_scenario("every_shape_of_adapter", repo_id, module=MODULE)
