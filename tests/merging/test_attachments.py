"""Which patches of a recipe are attached, in which order, and what is refused; plans alone, nothing is run."""

from typing import Any

import numpy as np
import peft
import pytest

from adapterhub.merging import native
from adapterhub.merging.checkpoint import LocalFolder
from adapterhub.merging.errors import MergingError, NotFoldable, NotStackable
from adapterhub.merging.native_runtime import write_runtime
from adapterhub.merging.plan import Plan, plan
from adapterhub.merging.recipes.canonical import Input, Ref
from adapterhub.merging.recipes.expression import parse
from tests.merging import tiny
from tests.merging.exactness.compare import trained

NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[Ref, Input]:
    root = tmp_path_factory.mktemp("inputs")
    tiny.saved(tiny.llama(), root / "base")
    delta = np.ones(16, np.float32)
    native.write_patch(root / "s", sites={NORM: native.sparse(delta)}, base={})
    for name in ("v", "w"):
        write_runtime(root / name, "steering", modules={"model.layers.0": {"vector": delta}}, options={"strength": 2})
    fields = {"up.weight": np.ones((16, 2), np.float32), "down.weight": np.ones((2, 16), np.float32)}
    write_runtime(root / "bottleneck", "bottleneck", modules={"model.layers.0": fields})
    write_runtime(root / "side", "side_model", shared={"w": delta}, options=dict.fromkeys(SIDE, "x"))
    for name, config in (("prompt", peft.PromptTuningConfig), ("prefix", peft.PrefixTuningConfig)):
        trained(tiny.llama(), config(task_type="CAUSAL_LM", num_virtual_tokens=3), root / name)
    kinds = {"base": "model", "s": "sparse", "v": "steering", "w": "steering", "bottleneck": "bottleneck"}
    kinds |= {"prompt": "prompt_tuning", "prefix": "prefix_tuning", "side": "side_model"}
    return {
        Ref(f"t/{name}"): Input(f"t/{name}@{'0' * 40}", LocalFolder(root / name), kind=kind)
        for name, kind in kinds.items()
    }


SIDE = ("architecture", "reads", "combines")


def planned(text: str, inputs: dict[Ref, Input], **options: Any) -> Plan:
    return plan(parse(text), inputs, **{"memory_bytes": 1 << 30, "attaches": True, **options})


def attached(text: str, inputs: dict[Ref, Input]) -> list[tuple[str, float]]:
    return [(one.name.partition("@")[0], one.weight) for one in planned(text, inputs).attachments]


def test_a_sum_is_attached_in_the_order_of_the_table_whatever_the_texts(inputs: dict[Ref, Input]) -> None:
    for text in ("t/base + 0.5*t/v + t/prompt + t/prefix", "t/base + t/prefix + 0.5*t/v + t/prompt"):
        assert attached(text, inputs) == [("t/prefix", 1.0), ("t/prompt", 1.0), ("t/v", 0.5)]


def test_weights_are_multiplied_through_and_what_folds_is_folded(inputs: dict[Ref, Input]) -> None:
    made = planned("t/base + 2*(t/s + 0.5*t/v)", inputs)
    assert made.touched == {NORM}
    assert [one.weight for one in made.attachments] == [1.0]
    assert attached("sequence(t/base; 2*t/s, 0.5*t/bottleneck, 3*t/v)", inputs) == [("t/bottleneck", 0.5), ("t/v", 3.0)]
    assert planned("sequence(t/base; t/v, t/bottleneck)", inputs).touched == set()


def test_the_canonical_recipe_names_what_is_attached(inputs: dict[Ref, Input]) -> None:
    digests = {planned(f"t/base{text}", inputs).recipe_digest for text in ("", " + t/v", " + 2*t/v")}
    assert len(digests) == 3


def test_attachments_say_what_they_take(inputs: dict[Ref, Input]) -> None:
    (prefix,) = planned("t/base + t/prefix", inputs).attachments
    assert prefix.virtual_tokens == 3
    assert prefix.size_bytes >= 4 * 3 * 2 * 2 * 8


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("t/base + t/v + t/bottleneck", NotFoldable, r"sequence\(base; t/"),
        ("ties(t/base; t/v, t/s)", NotFoldable, r"t/v@.* outside the method"),
        ("t/base + ties(t/s, linear(t/s, t/v))", NotFoldable, "outside the method"),
        ("sequence(t/base; t/prompt, t/prefix)", NotStackable, "a prefix comes before a prompt"),
        ("sequence(t/base; t/v, t/s)", NotStackable, "sparse does not go on top of steering"),
        ("t/w + sequence(t/base; t/v, t/bottleneck)", NotFoldable, "into one sequence"),
        ("t/base + t/side", NotFoldable, "nothing here runs it"),
    ],
)
def test_what_is_not_attached_is_refused_by_name(
    inputs: dict[Ref, Input], text: str, error: type[MergingError], says: str
) -> None:
    with pytest.raises(error, match=says):
        planned(text, inputs)


@pytest.mark.parametrize(("name", "says"), [("v", "ask for the same recipe as `model`"), ("side", "leave it out")])
def test_a_merge_says_what_to_do_instead(inputs: dict[Ref, Input], name: str, says: str) -> None:
    with pytest.raises(NotFoldable, match=says):
        planned(f"t/base + t/s + t/{name}", inputs, attaches=False)
