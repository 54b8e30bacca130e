"""`adapterhub merge moe --route trained` on real files: the patch that it writes computes as each domain's own LoRA."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from adapterhub.merging import patches, runtime
from adapterhub.merging.checkpoint import Checkpoint
from adapterhub.merging.effects import part
from adapterhub.merging.folders import LocalFolder
from adapterhub.merging.terms import terms
from tests.cli.conftest import Command
from tests.hub.serving.test_routing import texts
from tests.merging import tiny


@torch.no_grad()
def test_the_command_writes_a_patch_that_computes_as_each_domains_own_lora(tmp_path: Path, command: Command) -> None:
    tiny.saved(tiny.llama(), tmp_path / "base")
    for number, name in enumerate(("low", "high")):
        tiny.adapter(tiny.llama(), tmp_path / name, seed=number + 1, target_modules=["q_proj", "v_proj"])
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts(60)[name])
        (tmp_path / f"{name}.jsonl").write_text(lines)
    words = ["merge", "moe", str(tmp_path / "base"), str(tmp_path / "routed"), "--route", "trained", "--json"]
    for name in ("low", "high"):
        words += ["--expert", f"{name}={tmp_path / name}", "--text", f"{name}={tmp_path / name}.jsonl"]
    ended = command(*words)
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    assert told["accuracy"] > 0.8
    facts = next(iter(patches.inspect(LocalFolder(tmp_path / "routed"))))
    assert (facts.kind, facts.problems) == ("loramoe", ())

    base = Checkpoint.open(LocalFolder(tmp_path / "base"), name="base")
    ids = {name: torch.tensor(several[:4]) for name, several in texts(60, seed=9).items()}
    routed: Any = tiny.llama()
    detach = runtime.runtimes()["loramoe"].attach(routed, LocalFolder(tmp_path / "routed"), "", 1.0)
    found = {name: routed(few).logits for name, few in ids.items()}
    detach()
    for name, other in (("low", "high"), ("high", "low")):
        own, foreign = (logits(base, tmp_path / one, ids[name]) for one in (name, other))
        assert float((found[name] - own).norm()) < 0.8 * float((found[name] - foreign).norm())


def logits(base: Checkpoint, adapter: Path, ids: torch.Tensor) -> torch.Tensor:
    """Of the base with one LoRA folded by torch alone."""
    model: Any = tiny.llama()
    for term in patches.read(LocalFolder(adapter), base=base).terms:
        factors = terms()["lowrank"].factors
        assert factors is not None
        weight = model.get_parameter(term.site)
        left, right = factors(part(term), tuple(weight.shape))
        weight.data += left @ right
    found: torch.Tensor = model(ids).logits
    return found


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--route", "guessed"], "one of declared and trained is expected"),
        (["--route", "trained"], "needs texts of every domain, and a has none"),
        (["--text", "a=x.jsonl"], "say --route trained"),
    ],
)
def test_a_misuse_of_the_command_says_what_to_do(tmp_path: Path, command: Command, more: list[str], said: str) -> None:
    for name in ("base", "a", "b"):
        (tmp_path / name).mkdir()
    pairs = ["--expert", f"a={tmp_path / 'a'}", "--expert", f"b={tmp_path / 'b'}"]
    ended = command("merge", "moe", str(tmp_path / "base"), str(tmp_path / "out"), *pairs, *more)
    assert ended.code == 2
    assert said in " ".join(ended.err.split())
