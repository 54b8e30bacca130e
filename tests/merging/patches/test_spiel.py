"""SpIEL's folders, as its fork of peft writes them, against W.view(-1)[idx] += v in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from adapterhub.merging import patches
from adapterhub.merging.checkpoint import Checkpoint, LocalFolder
from adapterhub.merging.errors import InvalidPatch
from tests.merging import tiny
from tests.merging.build import random
from tests.merging.exactness.architectures import ARCHITECTURES
from tests.merging.exactness.compare import DENSE_ON, DTYPES, check_dense, fold, record, roundings

NAMES = ("llama", "bert", "opt", "whisper")


def adapter(folder: Path, modules: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> Path:
    folder.mkdir()
    config: dict[str, Any] = {"peft_type": "SFT", "base_model_name_or_path": "tiny/base", "density": 0.1}
    config |= {
        "num_deltas": {name: len(values) for name, (values, _) in modules.items()},
        "selection_algorithm": "rigl",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {}
    for name, (values, indices) in modules.items():
        tensors[f"base_model.model.{name}.sft_delta.values"] = values
        tensors[f"base_model.model.{name}.sft_delta.indices"] = indices.int()
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_unsorted_and_repeated_positions_fold_by_the_formula(name: str, dtype: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES[name]
    model = architecture.make(dtype=DTYPES[dtype])
    expected = {key: value.double() for key, value in model.state_dict().items()}
    modules = {}
    for number, (path, module) in enumerate(model.named_modules()):
        if path.rpartition(".")[2] in {one.rpartition(".")[2] for one in architecture.linear}:
            indices = torch.randint(module.weight.numel(), (40,), generator=torch.Generator().manual_seed(number))
            indices[1] = indices[0]
            values = random(40, seed=number, dtype=DTYPES[dtype])
            modules[path] = values, indices
            expected[f"{path}.weight"].view(-1).index_add_(0, indices, values.double())
    assert modules
    base, patch = tiny.saved(model, tmp_path / "base"), adapter(tmp_path / "patch", modules)
    merged = architecture.loader.from_pretrained(fold(base, patch, tmp_path / "out"))
    error = roundings(merged.state_dict(), expected, DTYPES[dtype])
    record("spiel", name, dtype, "float64 formula (SparseDelta)", error)
    assert error <= 1.0
    if name in DENSE_ON:
        check_dense("spiel", name, dtype, base, patch, expected, tmp_path)


def test_it_is_told_by_its_type_and_what_does_not_fit_by_its_name(tmp_path: Path) -> None:
    base = Checkpoint.open(LocalFolder(tiny.saved(ARCHITECTURES["llama"].make(), tmp_path / "base")))
    module = "model.layers.0.self_attn.q_proj"
    good = adapter(tmp_path / "good", {module: (torch.ones(3), torch.tensor([5, 2, 5]))})
    (facts,) = patches.inspect(LocalFolder(good))
    assert (facts.kind, facts.problems, facts.detail["density"]) == ("spiel", (), 0.1)
    (term,) = patches.read(LocalFolder(good), base=base).terms
    assert term.fields["val"].read().tobytes() == torch.tensor([1.0, 2.0]).numpy().tobytes()
    far = adapter(tmp_path / "far", {module: (torch.ones(1), torch.tensor([10**8]))})
    with pytest.raises(InvalidPatch, match=r"q_proj: sft_delta\.indices reach from 100000000 to"):
        patches.read(LocalFolder(far), base=base)
    uneven = adapter(tmp_path / "uneven", {module: (torch.ones(2), torch.tensor([1]))})
    (facts,) = patches.inspect(LocalFolder(uneven))
    assert "one position a value is expected" in facts.problems[0]
