"""sentence-transformers, unmodified, on an encoder with real weights and an adapter of it."""

import pytest

from tests.clients.conftest import Run

pytestmark = pytest.mark.slow

MODULE = "tests.clients.scenarios_sentence_transformers"


def test_an_encoder_answers_as_before_it_was_pushed(run_scenario: Run, repo_id: str) -> None:
    run_scenario("an_encoder", repo_id, module=MODULE)


def test_an_adapter_of_an_encoder_is_loaded_by_name(run_scenario: Run, repo_id: str) -> None:
    run_scenario("an_adapter_of_an_encoder", repo_id, module=MODULE)
