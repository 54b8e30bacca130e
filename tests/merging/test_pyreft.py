"""pyreft's folders are told by names, never opened by the hub, and converted to reft patches with the same numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adapterhub.merging import patches, pyreft
from adapterhub.merging.checkpoint import Checkpoint, LocalFolder
from adapterhub.merging.errors import InvalidParameter, InvalidPatch, NotFoldable
from adapterhub.merging.native_runtime import read_runtime
from adapterhub.merging.representations import REFT
from tests.merging import tiny
from tests.merging.build import random
from tests.merging.exactness.architectures import ARCHITECTURES

LOREFT = "<class 'pyreft.interventions.LoreftIntervention'>"
NAMES = (
    "intkey_layer_{}_comp_block_output_unit_pos_nunit_1#0.bin",
    "intkey_layer.{}.comp.block_output.unit.pos.nunit.1#0.bin",
)


def saved(folder: Path, name: str = NAMES[0], kind: str = LOREFT, **more: Any) -> dict[int, dict[str, torch.Tensor]]:
    """Both layers' interventions, as LoreftIntervention.state_dict gives them."""
    folder.mkdir()
    config = {"representations": [[0], [1]], "intervention_types": [kind, kind], **more}
    (folder / "config.json").write_text(json.dumps(config))
    states = {}
    for layer in (0, 1):
        rotation = torch.linalg.qr(random(16, 2, seed=layer)).Q
        states[layer] = {"weight": random(2, 16, seed=5), "bias": random(2, seed=6), "rotate_layer": rotation}
        torch.save(states[layer], folder / name.format(layer))
    return states


def base(tmp_path: Path, name: str = "llama") -> Checkpoint:
    return Checkpoint.open(LocalFolder(tiny.saved(ARCHITECTURES[name].make(), tmp_path / "base")), name="tiny/base")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("architecture", "block"),
    [("llama", "model.layers.1"), pytest.param("gpt2", "transformer.h.1", marks=pytest.mark.slow)],
)
def test_interventions_become_the_edit_of_the_paper(name: str, architecture: str, block: str, tmp_path: Path) -> None:
    states = saved(tmp_path / "in", name)
    modules = pyreft.to_native(LocalFolder(tmp_path / "in"), base(tmp_path, architecture), "f3+l2", tmp_path / "out")
    assert block in modules
    (facts,) = patches.inspect(LocalFolder(tmp_path / "out"))
    assert (facts.kind, facts.problems) == ("reft", ())
    patch = read_runtime(LocalFolder(tmp_path / "out"), "", REFT)
    assert patch.options == {"positions": "ends", "first": 3, "last": 2}
    R, W, b = (np.frombuffer(patch.modules[block][field].read(), "<f4") for field in ("R", "W", "b"))
    h, state = random(16, seed=9).double(), {key: one.double() for key, one in states[1].items()}
    theirs = h + ((state["weight"] @ h + state["bias"]) - h @ state["rotate_layer"]) @ state["rotate_layer"].T
    R, W = R.reshape(2, 16).astype(np.float64), W.reshape(2, 16).astype(np.float64)
    np.testing.assert_allclose(h.numpy() + R.T @ (W @ h.numpy() + b - R @ h.numpy()), theirs.numpy(), atol=1e-12)


def test_the_hub_tells_it_by_name_and_says_what_to_do(tmp_path: Path) -> None:
    saved(tmp_path / "in")
    (facts,) = patches.inspect(LocalFolder(tmp_path / "in"))
    assert (facts.kind, facts.effect) == ("pyreft", "runtime")
    assert "adapterhub patch convert FOLDER OUT --to native" in facts.problems[0]
    with pytest.raises(NotFoldable, match="pickles, which are not opened here"):
        patches.read(LocalFolder(tmp_path / "in"))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"kind": LOREFT.replace("Loreft", "Direft")}, "only LoreftIntervention"),
        ({"intervention_types": [LOREFT]}, "lists 1 interventions, and 2 files"),
        ({"name": "intkey_layer_{}_comp_block_output_unit_pos_nunit_1#1.bin"}, "one intervention on the output"),
        ({"name": "intkey_layer_{}_comp_mlp_output_unit_pos_nunit_1#0.bin"}, "one intervention on the output"),
    ],
)
def test_other_interventions_are_problems_and_not_converted(
    change: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    saved(tmp_path / "in", **change)
    (facts,) = patches.inspect(LocalFolder(tmp_path / "in"))
    assert problem in facts.problems[0]
    with pytest.raises(InvalidPatch, match=problem):
        pyreft.to_native(LocalFolder(tmp_path / "in"), base(tmp_path), "all", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_positions_of_another_form_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "in")
    with pytest.raises(InvalidParameter, match=r"f<n>\+l<n>"):
        pyreft.to_native(LocalFolder(tmp_path / "in"), base(tmp_path), "f7", tmp_path / "out")
