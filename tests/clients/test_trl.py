"""TRL, unmodified, pushing the adapter that it trains."""

import pytest

from tests.clients.conftest import Run


@pytest.mark.slow
def test_fine_tuning_pushes_while_it_trains(run_scenario: Run, repo_id: str) -> None:
    run_scenario("fine_tuning_pushes", repo_id, module="tests.clients.scenarios_trl")
