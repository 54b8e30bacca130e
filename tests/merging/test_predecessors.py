"""Patches on top of others: refused by name without them, accepted with them or on a base that has them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterhub.merging import native
from adapterhub.merging.checkpoint import Checkpoint, LocalFolder
from adapterhub.merging.errors import BaseMismatch, InvalidPatch
from adapterhub.merging.fingerprint import fingerprint
from adapterhub.merging.native_runtime import write_runtime
from adapterhub.merging.patch import TrainingBase
from adapterhub.merging.plan import plan
from adapterhub.merging.recipes.canonical import Input
from adapterhub.merging.recipes.expression import parse
from tests.merging import tiny

SITE = "model.layers.0.self_attn.q_proj.weight"
COMMIT = "c" * 40


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lab")
    tiny.saved(tiny.llama(), root / "base")
    tiny.saved(tiny.llama(seed=3), root / "other")
    sparse(root / "sft", {"repo_id": "lab/base"})
    return root


def sparse(folder: Path, base: dict[str, Any], seed: int = 0) -> str:
    delta = np.random.default_rng(seed).normal(size=(16, 16)).astype(np.float32)
    return native.write_patch(folder, sites={SITE: native.sparse(delta)}, base=base)


def planned(text: str, root: Path, **kinds: str) -> None:
    recipe = parse(text)
    known = {"base": "model", "other": "model"} | kinds
    inputs = {}
    for ref in recipe.references():
        name = ref.name.partition("/")[2]
        folder = LocalFolder(root / name)
        inputs[ref] = Input(f"{ref.name}@{ref.revision or COMMIT}", folder, kind=known.get(name, "sparse"))
    plan(recipe, inputs, memory_bytes=1 << 30, attaches=True)


def test_a_recipe_as_base_is_a_predecessor_by_name(root: Path) -> None:
    sparse(root / "dpo", {"recipe": "lab/base + lab/sft"}, seed=1)
    planned("lab/base + lab/sft + lab/dpo", root)
    planned("sequence(lab/base; 0.5*lab/sft, lab/dpo)", root)
    says = r"lab/dpo@c+: was trained on top of lab/sft, on lab/base \+ lab/sft, .* as in {} \+ lab/sft \+ lab/dpo$"
    for text in ("lab/base + lab/dpo", "lab/base + 0*lab/sft + lab/dpo", "lab/other + 0.1*lab/dpo"):
        with pytest.raises(BaseMismatch, match=says.format(text.partition(" ")[0])):
            planned(text, root)


def test_a_commit_in_the_recipe_is_the_one_that_is_needed(root: Path) -> None:
    sparse(root / "pinned", {"recipe": f"lab/base + lab/sft@{COMMIT}"}, seed=1)
    planned(f"lab/base + lab/sft@{COMMIT} + lab/pinned", root)
    with pytest.raises(BaseMismatch, match=f"add it, as in lab/base .* lab/sft@{COMMIT} "):
        planned(f"lab/base + lab/sft@{'d' * 40} + lab/pinned", root)


def test_every_missing_predecessor_is_named(root: Path) -> None:
    sparse(root / "third", {"recipe": "lab/base + lab/sft + lab/more"}, seed=1)
    with pytest.raises(BaseMismatch, match=r"lab/sft and lab/more, .* lab/base \+ lab/sft \+ lab/more \+ lab/third"):
        planned("lab/base + lab/third", root)


def test_a_base_that_has_the_predecessor_needs_no_other(root: Path) -> None:
    params = fingerprint(Checkpoint.open(LocalFolder(root / "other"))).parameters
    known = {"recipe": "lab/base + lab/sft", "fingerprint": {"params": {SITE: params[SITE]}}}
    sparse(root / "on_other", known, seed=1)
    planned("lab/other + lab/on_other", root)
    with pytest.raises(BaseMismatch, match="lab/sft"):
        planned("lab/base + lab/on_other", root)


def test_a_recipe_that_does_not_parse_is_a_broken_patch(root: Path) -> None:
    sparse(root / "broken", {"recipe": "lab/base + "}, seed=1)
    with pytest.raises(InvalidPatch, match="does not parse"):
        planned("lab/base + lab/broken", root)


def test_a_run_time_patch_has_predecessors_too(root: Path) -> None:
    vector = {"vector": np.ones(16, np.float32)}
    write_runtime(root / "v", "steering", modules={"model.layers.0": vector}, base={"recipe": "lab/base + lab/sft"})
    planned("lab/base + lab/sft + lab/v", root, v="steering")
    with pytest.raises(BaseMismatch, match="lab/sft"):
        planned("lab/base + lab/v", root, v="steering")


def test_a_port_still_needs_its_predecessor_on_the_new_base(root: Path) -> None:
    """The new base's own values are not those that the patch stands on, so they do not stand in for the predecessor."""
    sparse(root / "carried", {"recipe": "lab/base + lab/sft"}, seed=1)
    target = fingerprint(Checkpoint.open(LocalFolder(root / "other")))
    base = TrainingBase("lab/other", COMMIT, target.root, parameters=target.parameters)
    ((name, manifest),) = native.rebase(LocalFolder(root / "carried"), "", base).items()
    (root / "carried" / name).write_bytes(manifest)
    with pytest.raises(BaseMismatch, match="lab/sft"):
        planned("lab/other + lab/carried", root)
    planned("lab/other + lab/sft + lab/carried", root)
