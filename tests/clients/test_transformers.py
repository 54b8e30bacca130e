"""transformers, unmodified, on models, tokenizers, processors and the Trainer."""

import pytest

from tests.clients.conftest import Run

pytestmark = pytest.mark.slow

MODULE = "tests.clients.scenarios_transformers"


def test_models_and_their_files_come_back_as_pushed(run_scenario: Run, repo_id: str) -> None:
    run_scenario("models_and_their_files", repo_id, module=MODULE)


def test_pickled_weights_are_loaded_and_sent_to_no_converter(run_scenario: Run, repo_id: str) -> None:
    run_scenario("pickled_weights_stay_here", repo_id, module=MODULE)


def test_pipelines_run_from_the_hub(run_scenario: Run, repo_id: str) -> None:
    run_scenario("pipelines", repo_id, module=MODULE)


def test_refusals_arrive_in_the_words_of_transformers(run_scenario: Run, repo_id: str) -> None:
    run_scenario("refusals_in_transformers_words", repo_id, module=MODULE)


def test_models_with_code_of_their_own_are_loaded(run_scenario: Run, repo_id: str) -> None:
    run_scenario("models_with_code_of_their_own", repo_id, module=MODULE)


def test_the_trainer_pushes_while_it_trains(run_scenario: Run, repo_id: str) -> None:
    run_scenario("the_trainer_pushes", repo_id, module="tests.clients.scenarios_trainer")


def test_training_resumes_from_a_pushed_checkpoint(run_scenario: Run, repo_id: str) -> None:
    run_scenario("training_resumes_from_the_hub", repo_id, module="tests.clients.scenarios_trainer")
