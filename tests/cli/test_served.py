"""`patch serveable` on local folders: verdicts, exit codes, what is written and what is refused."""

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from adapterhub.cli.engine_client import top_tokens
from tests.cli.conftest import Command


def test_serveable_tells_each_tensor_and_the_verdict(command: Command, folders: Path) -> None:
    source, base = str(folders / "code"), str(folders / "base")
    ended = command("patch", "serveable", source, "--engine", "vllm@0.33.0", "--base", base)
    assert ended.code == 0, ended.err
    assert "vllm@0.33.0: served as is" in ended.out
    assert "--max-lora-rank 8" in ended.out
    found = json.loads(command("patch", "serveable", source, "--engine", "vllm", "--base", base, "--json").out)
    assert (found["version"], found["verdict"], found["as_is"]) == ("0.33.0", "as is", "applies")
    assert [one["tensor"] for one in found["tensors"]] == sorted(load_file(folders / "code/adapter_model.safetensors"))


def test_serveable_writes_what_the_engine_applies_whole(command: Command, folders: Path) -> None:
    """The samples' adapters have q alone, which SGLang refuses without v."""
    source, base, out = (str(folders / name) for name in ("code", "base", "out"))
    ended = command("patch", "serveable", source, "--engine", "sglang", "--base", base, "--out", out)
    assert ended.code == 0, ended.err
    assert "served after a rewrite" in ended.out
    assert "the engine refuses it" in ended.out
    assert "the same deltas" in ended.err
    again = json.loads(command("patch", "serveable", out, "--engine", "sglang", "--base", base, "--json").out)
    assert again["verdict"] == "as is"
    ended = command("patch", "serveable", source, "--engine", "sglang", "--base", base, "--out", out)
    assert ended.code == 4  # it is there already


def test_serveable_ends_with_4_where_a_part_is_not_served(command: Command, folders: Path) -> None:
    file = folders / "code" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_dora": True}))
    weights = folders / "code" / "adapter_model.safetensors"
    tensors = load_file(weights)
    for name, B in load_file(weights).items():
        if "lora_B" in name:
            tensors[name.replace("lora_B.weight", "lora_magnitude_vector")] = abs(B).sum(1) + 1
    save_file(tensors, weights)
    arguments = ("patch", "serveable", str(folders / "code"), "--engine", "vllm", "--base", str(folders / "base"))
    ended = command(*arguments)
    assert ended.code == 4
    assert "vllm@0.33.0: not served; as it is, the engine refuses it" in ended.out
    ended = command(*arguments, "--out", str(folders / "out"))
    assert ended.code == 4
    assert "so nothing is written" in ended.err
    assert not (folders / "out").exists()


def test_serveable_says_what_is_wrong_in_one_line(command: Command, folders: Path) -> None:
    source = str(folders / "code")
    ended = command("patch", "serveable", source, "--engine", "vlm")
    assert (ended.code, "did you mean vllm?" in ended.err) == (4, True)
    ended = command("patch", "serveable", source + "-missing", "--engine", "vllm")
    assert (ended.code, "no such folder" in ended.err) == (3, True)
    ended = command("patch", "serveable", str(folders / "base"), "--engine", "vllm")
    assert (ended.code, "it is a whole model" in ended.err) == (4, True)
    (folders / "empty").mkdir()
    ended = command("patch", "serveable", str(folders / "empty"), "--engine", "vllm")
    assert (ended.code, "no patch of a known kind lies here" in ended.err) == (4, True)
    canary = ("patch", "canary", source + "-missing", "--base", source, "--url", "http://127.0.0.1:9", "--model", "m")
    assert command(*canary).code == 3


@pytest.mark.parametrize(
    ("logprobs", "expected"),
    [
        (
            {"tokens": [" a"], "token_logprobs": [-0.1], "top_logprobs": [{" a": -0.1, "b": -3}]},
            [(" a", -0.1), ("b", -3.0)],
        ),
        ({"content": [{"token": " a", "top_logprobs": [{"token": " a", "logprob": -0.1}]}]}, [(" a", -0.1)]),
        ({"top_logprobs": None}, []),
        ({"top_logprobs": []}, []),
        (None, []),
    ],
)
def test_an_answers_likeliest_tokens_are_read_in_both_forms(
    logprobs: object, expected: list[tuple[str, float]]
) -> None:
    assert top_tokens({"choices": [{"text": " a", "logprobs": logprobs}]}) == expected
    assert top_tokens({"choices": []}) == []
