"""What virtual tokens ask of masks, positions and caches, and which files of theirs contradict themselves."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterhub.merging import patches, runtime
from adapterhub.merging.checkpoint import LocalFolder
from adapterhub.merging.errors import InvalidParameter, NotFoldable
from tests.merging.runtime.cases import CASES, Made, fresh

CAUSAL = ("gpt2", "llama", "mistral", "opt", "phi3", "gemma")
KINDS = ("prompt_tuning", "prefix_tuning")


def made(kind: str, architecture: str, tmp_path: Path) -> Made:
    return next(case for case in CASES if (case.kind, case.architecture) == (kind, architecture)).make(
        tmp_path, "float32"
    )


def attach(one: Made, model: Any) -> Any:
    (facts, *_) = patches.inspect(LocalFolder(one.folder))
    return runtime.runtimes()[facts.kind].attach(model, LocalFolder(one.folder), "", 1.0)


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("kind", KINDS)
def test_a_left_padded_row_generates_what_it_generates_alone(kind: str, name: str, tmp_path: Path) -> None:
    one = made(kind, name, tmp_path)
    attach(one, one.model)
    short, long = torch.tensor([[3, 9, 4]]), torch.tensor([[5, 1, 7, 2, 8, 6]])
    both = torch.cat([torch.cat([torch.zeros(1, 3, dtype=torch.long), short], dim=1), long])
    mask = torch.tensor([[0, 0, 0, 1, 1, 1], [1] * 6])
    options = {"max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    together = one.model.generate(input_ids=both, attention_mask=mask, **options)
    for number, alone in enumerate((short, long)):
        single = one.model.generate(input_ids=alone, attention_mask=torch.ones_like(alone), **options)
        for found, expected in zip(together.logits, single.logits, strict=True):
            torch.testing.assert_close(found[number], expected[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_changes_nothing(kind: str, tmp_path: Path) -> None:
    one = made(kind, "llama", tmp_path)
    attach(one, one.model)
    ids = torch.arange(1, 9).view(1, 8)
    with_cache, without = (
        one.model.generate(input_ids=ids, max_new_tokens=6, do_sample=False, use_cache=uses) for uses in (True, False)
    )
    assert with_cache.tolist() == without.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_beams_share_the_virtual_tokens(kind: str, tmp_path: Path) -> None:
    one = made(kind, "llama", tmp_path)
    attach(one, one.model)
    found = one.model.generate(input_ids=torch.arange(1, 9).view(1, 8), max_new_tokens=4, num_beams=3, do_sample=False)
    assert found.shape == (1, 12)


def test_two_prompts_put_the_lower_ones_tokens_first(tmp_path: Path) -> None:
    lower, upper = (made("prompt_tuning", "llama", tmp_path / name) for name in "ab")
    values = load_file(upper.folder / "adapter_model.safetensors")
    save_file({name: -one for name, one in values.items()}, upper.folder / "adapter_model.safetensors")
    attach(lower, lower.model)
    attach(upper, lower.model)
    ids = torch.arange(1, 9).view(1, 8)
    prompts = [load_file(one.folder / "adapter_model.safetensors")["prompt_embeddings"] for one in (lower, upper)]
    bare = fresh("llama", "float32")
    with torch.no_grad():
        embeds = torch.cat([*(one[None] for one in prompts), bare.get_input_embeddings()(ids)], dim=1)
        torch.testing.assert_close(lower.model(input_ids=ids).logits, bare(inputs_embeds=embeds).logits)
    assert lower.model.generate(input_ids=ids, max_new_tokens=3, do_sample=False).shape == (1, 11)


def test_a_prompt_on_a_prefix_gives_the_prefix_first(tmp_path: Path) -> None:
    prefix, prompt = made("prefix_tuning", "llama", tmp_path / "a"), made("prompt_tuning", "llama", tmp_path / "b")
    attach(prefix, prefix.model)
    attach(prompt, prefix.model)
    ids = torch.arange(1, 9).view(1, 8)
    options = {"max_new_tokens": 6, "do_sample": False}
    found, again = (prefix.model.generate(input_ids=ids, **options, use_cache=uses) for uses in (True, False))
    assert found.tolist() == again.tolist()


def test_a_task_must_be_named_where_there_is_a_prompt_for_each(tmp_path: Path) -> None:
    one = made("multitask_prompt_tuning", "llama", tmp_path)
    attach(one, one.model)
    with pytest.raises(InvalidParameter, match="task_ids"):
        one.model(input_ids=torch.tensor([[1, 2]]))
    (facts, *_) = patches.inspect(LocalFolder(one.folder))
    assert facts.detail["needs"] == ["task_ids"]


@pytest.mark.parametrize("name", ["whisper", "vit", "wav2vec2"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_without_tokens_takes_no_virtual_ones(kind: str, name: str, tmp_path: Path) -> None:
    one = made(kind, "llama", tmp_path)
    with pytest.raises(NotFoldable, match="takes no tokens"):
        attach(one, fresh(name, "float32"))


@pytest.mark.parametrize(
    ("kind", "change", "problem"),
    [
        ("prompt_tuning", {"num_virtual_tokens": 4}, "3 rows, and adapter_config.json says 4 virtual tokens"),
        ("prompt_tuning", {"num_virtual_tokens": "3"}, "num_virtual_tokens is '3'"),
        ("prompt_tuning", {"token_dim": 8}, "16 wide, and adapter_config.json says token_dim 8"),
        ("prefix_tuning", {"num_layers": 3}, "3 layers of keys and values of width 8 are 48"),
        ("prefix_tuning", {"num_attention_heads": 3}, "the second must divide the first"),
        ("cpt", {"cpt_token_ids": [1]}, "cpt_token_ids has 1 entries"),
        ("multitask_prompt_tuning", {"num_tasks": 5}, "num_tasks, num_ranks and the prompt make it"),
        ("multitask_prompt_tuning", {"num_ranks": 0}, "num_ranks is 0"),
    ],
)
def test_a_prompt_that_contradicts_its_configuration_is_said_to(
    kind: str, change: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    one = made(kind, "llama", tmp_path)
    file = one.folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    (facts, *_) = patches.inspect(LocalFolder(one.folder))
    assert facts.kind == kind
    assert problem in facts.problems[0]


def test_facts_of_a_prompt_name_its_tokens(tmp_path: Path) -> None:
    one = made("prompt_tuning", "bert", tmp_path)
    (facts, *_) = patches.inspect(LocalFolder(one.folder))
    assert facts.detail["virtual_tokens"] == 3
    assert facts.parameter_count == 3 * 16 + 2 * 16 + 2
    patch = patches.read(LocalFolder(one.folder))
    assert patch.terms == ()
    values = load_file(one.folder / "adapter_model.safetensors")
    save_file({name: value + 1 for name, value in values.items()}, one.folder / "adapter_model.safetensors")
    assert patches.read(LocalFolder(one.folder)).digest != patch.digest
