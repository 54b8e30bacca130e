"""What adapters that look at the input need beside the input, and which files of theirs contradict themselves."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.merging import patches, runtime
from adapterhub.merging.checkpoint import LocalFolder
from adapterhub.merging.errors import InvalidParameter, InvalidPatch
from adapterhub.merging.runtime.alora import offset
from tests.merging.runtime.cases import CASES, Made, fresh


def made(kind: str, tmp_path: Path) -> Made:
    return next(case for case in CASES if (case.kind, case.architecture) == (kind, "llama")).make(tmp_path, "float32")


def attach(one: Made, model: Any) -> Any:
    facts = next(facts for facts in patches.inspect(LocalFolder(one.folder)) if facts.path == one.path)
    return runtime.runtimes()[facts.kind].attach(model, LocalFolder(one.folder), one.path, 1.0)


def logits(model: Any, ids: list[list[int]], **calls: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.tensor(ids), **calls).logits
    return found


@given(st.lists(st.integers(0, 3), max_size=12), st.lists(st.integers(0, 3), min_size=1, max_size=3))
def test_an_invocation_is_found_where_it_occurs_last(row: list[int], tokens: list[int]) -> None:
    starts = [start for start in range(len(row)) if row[start : start + len(tokens)] == tokens]
    assert offset(row, tokens) == (len(row) - starts[-1] if starts else None)


def test_an_activated_lora_leaves_what_comes_before_its_invocation(tmp_path: Path) -> None:
    one = made("alora", tmp_path)
    bare = logits(one.model, [[1, 2, 7, 8, 5], [1, 2, 3, 4, 5]])
    attach(one, one.model)
    found = logits(one.model, [[1, 2, 7, 8, 5], [1, 2, 3, 4, 5]])
    assert torch.equal(found[0, :2], bare[0, :2])
    assert not torch.allclose(found[0, 2:], bare[0, 2:])
    assert torch.equal(found[1], bare[1])


@pytest.mark.parametrize("kind", ["poly", "multitask_prompt_tuning"])
def test_a_task_must_be_named(kind: str, tmp_path: Path) -> None:
    one = made(kind, tmp_path)
    detach = attach(one, one.model)
    with pytest.raises(InvalidParameter, match="task_ids"):
        logits(one.model, [[1, 2]])
    first, second = (logits(one.model, [[1, 2]], task_ids=torch.tensor([task])) for task in (0, 1))
    assert not torch.allclose(first, second)
    with pytest.raises(InvalidParameter, match="task_ids"):
        logits(one.model, [[1, 2]])
    detach()


def test_beams_of_a_row_have_its_task(tmp_path: Path) -> None:
    one = made("poly", tmp_path)
    attach(one, one.model)
    ids, tasks = torch.tensor([[1, 2], [3, 4]]), torch.tensor([0, 2])
    options = {"max_new_tokens": 4, "num_beams": 2, "do_sample": False}
    both = one.model.generate(input_ids=ids, task_ids=tasks, **options)
    for row in (0, 1):
        alone = one.model.generate(input_ids=ids[row : row + 1], task_ids=tasks[row : row + 1], **options)
        assert both[row].tolist() == alone[0].tolist()


@pytest.mark.parametrize("kind", ["lily", "poly", "alora", "loramoe", "arrow", "xlora"])
def test_a_strength_of_0_is_the_bare_model_and_1_the_patch(kind: str, tmp_path: Path) -> None:
    one = made(kind, tmp_path)
    bare, ids = fresh("llama", "float32"), [[1, 2, 7, 8, 5]]
    facts = next(facts for facts in patches.inspect(LocalFolder(one.folder)) if facts.path == one.path)
    runtime.runtimes()[facts.kind].attach(one.model, LocalFolder(one.folder), one.path, 0.0)
    torch.testing.assert_close(logits(one.model, ids, **one.calls), logits(bare, ids))


@pytest.mark.parametrize(
    ("kind", "change", "problem"),
    [
        ("lily", {"num_B": 2}, "(4, None) is expected".replace("None", "any")),
        ("lily", {"num_B": 0}, "num_B is 0"),
        ("lily", {"scaling": "1"}, "scaling is '1'"),
        ("poly", {"n_tasks": 4}, "logits is (3, 4); (4, 4) is expected"),
        ("poly", {"poly_type": "other"}, "poly_type is 'other'"),
        ("alora", {"alora_invocation_tokens": ["a"]}, "a list of 1 to 1024 tokens"),
        ("alora", {"r": 4}, "A is (3, 16); (4, any) is expected"),
        ("loramoe", {"lora_nums": 4}, "A3 is there or missing"),
        ("arrow", {"arrow_config": {"task_adapter_names": ["../x"]}}, "names of folders beside it are expected"),
        ("arrow", {"arrow_config": {"task_adapter_names": ["a"], "top_k": 2}}, "top_k is 2 of 1"),
        ("arrow", {"arrow_config": {"task_adapter_names": ["a"], "top_k": 1, "use_gks": True}}, "no gks_adapter_names"),
        ("xlora", {"adapters": {}}, "an object that names 1 to 256"),
        ("xlora", {"xlora_depth": 3}, "holds 2 layers of a classifier"),
        ("xlora", {"hidden_size": 8}, "does not take 8 numbers"),
        ("adaption_prompt", {"adapter_layers": 3}, "prompts of 2 layers"),
        ("adaption_prompt", {"target_modules": "a|b"}, "the name of attention modules"),
        ("shadow", {"shadow_model": "org/model"}, "a model elsewhere is never fetched"),
    ],
)
def test_what_contradicts_its_configuration_is_said_to(
    kind: str, change: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    one = made(kind, tmp_path)
    file = one.folder / one.path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    facts = next(facts for facts in patches.inspect(LocalFolder(one.folder)) if facts.path == one.path)
    assert facts.kind == kind
    assert problem in facts.problems[0]
    with pytest.raises(InvalidPatch):
        runtime.runtimes()[kind].attach(fresh("llama", "float32"), LocalFolder(one.folder), one.path, 1.0)


def test_a_routers_experts_must_lie_in_the_repository(tmp_path: Path) -> None:
    one = made("xlora", tmp_path)
    file = one.folder / "adapter_config.json"
    config = json.loads(file.read_text()) | {"adapters": {"0": "/etc", "1": "../../x"}}
    file.write_text(json.dumps(config))
    attach(one, one.model)()
    (one.folder / "1" / "adapter_config.json").unlink()
    with pytest.raises(InvalidPatch, match=r"'1' at '../../x' is not in this repository"):
        runtime.runtimes()["xlora"].attach(one.model, LocalFolder(one.folder), "", 1.0)


@pytest.mark.parametrize(
    ("kind", "needs"),
    [
        ("poly", ["task_ids"]),
        ("alora", ["invocation tokens 7 8"]),
        ("arrow", ["adapter task_0", "adapter task_1", "adapter task_2", "adapter gks_0"]),
        ("xlora", ["adapter 0", "adapter 1"]),
    ],
)
def test_facts_say_what_is_needed_to_run(kind: str, needs: list[str], tmp_path: Path) -> None:
    one = made(kind, tmp_path)
    facts = next(facts for facts in patches.inspect(LocalFolder(one.folder)) if facts.path == one.path)
    assert facts.detail["needs"] == needs
    assert facts.parameter_count > 0
