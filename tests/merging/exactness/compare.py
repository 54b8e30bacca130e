"""Folds a patch with our engine and measures how far the result is from an oracle; each measurement is written down.

The unit is one rounding: an entry is 1.0 off where it differs from the oracle's, computed in float64, by half a unit in
the last place of the result's dtype, allowing for the float32 in which sums are accumulated. At most 1.0 is exact.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import PreTrainedModel

from adapterhub.merging import convert, patches
from adapterhub.merging.checkpoint import Checkpoint, LocalFolder
from adapterhub.merging.engine import run
from adapterhub.merging.patch import Patch
from adapterhub.merging.plan import plan
from adapterhub.merging.recipes.canonical import Input
from adapterhub.merging.recipes.expression import parse
from tests.merging import tiny
from tests.merging.exactness.architectures import Architecture, output

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

DENSE_ON = ("llama", "opt")
"""Where what folds is converted to a dense patch besides: one architecture without biases, one with."""

LOGITS = 2e-5
"""Largest relative difference of float32 logits that counts as the same function: a dozen matrix products of noise."""

LOGITS_OF = {"float32": LOGITS, "bfloat16": 2e-2}
"""The same by the dtype of the weights: in bfloat16 they are off by a few in a thousand, the oracle's are not."""


def fold(base: Path, patch: Path, out: Path, *, text: str = "base + a", **options: Any) -> Path:
    """`out`, with the patch folded into the model in `base`."""
    recipe = parse(text)
    (facts, *_) = patches.inspect(LocalFolder(patch))
    kinds = {"base": ("model", base), "a": (facts.kind, patch)}
    inputs = {
        ref: Input(f"{ref.name}@{'0' * 40}", LocalFolder(kinds[ref.name][1]), kind=kinds[ref.name][0])
        for ref in recipe.references()
    }
    run(plan(recipe, inputs, memory_bytes=1 << 30, **options), out)
    return out


def record(kind: str, architecture: str, dtype: str, oracle: str, error: float, what: str = "weights") -> None:
    """Write one measurement down where the test run collects them (the file AHTEST_EXACTNESS names), if it does."""
    target = os.environ.get("AHTEST_EXACTNESS")
    if target:
        told = {"kind": kind, "architecture": architecture, "dtype": dtype, "oracle": oracle, "error": error}
        with Path(target).open("a") as file:
            file.write(json.dumps(told | {"what": what}) + "\n")


def record_refusal(kind: str, architecture: str, reason: str) -> None:
    """Write down, for every dtype, that a library refuses this kind on this architecture, and in which words."""
    for dtype in DTYPES:
        record(kind, architecture, dtype, reason, 0.0, "refused")


def roundings(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], dtype: torch.dtype) -> float:
    """How many roundings the worst entry is off; the names of both must be the same."""
    assert found.keys() == expected.keys()
    worst = 0.0
    for name, tensor in found.items():
        if not tensor.is_floating_point() or not tensor.numel():
            assert torch.equal(tensor, expected[name])
            continue
        exact = expected[name].double()
        allowed = torch.finfo(dtype).eps / 2 * exact.abs() + 8 * torch.finfo(torch.float32).eps * exact.abs().max()
        difference = (tensor.double() - exact).abs()
        worst = max(worst, float((difference / allowed.clamp_min(1e-30)).max()))
    return worst


def check_weights(
    kind: str, architecture: Architecture, dtype: str, base: Path, patch: Path, adapted: PeftModel, tmp_path: Path
) -> None:
    """Fold `patch` into `base` and compare with what peft merges in float64; `adapted` is used up."""
    merged = architecture.loader.from_pretrained(fold(base, patch, tmp_path / "out"))
    assert merged.dtype == DTYPES[dtype]
    oracle = adapted.double().merge_and_unload().state_dict()
    error = roundings(merged.state_dict(), oracle, DTYPES[dtype])
    record(kind, architecture.name, dtype, "peft merge_and_unload, float64", error)
    assert error <= 1.0
    if architecture.name in DENSE_ON:
        check_dense(kind, architecture.name, dtype, base, patch, oracle, tmp_path)


def check_dense(
    kind: str, name: str, dtype: str, base: Path, patch: Path, expected: Mapping[str, torch.Tensor], tmp_path: Path
) -> None:
    """Convert `patch` to a dense one and fold that into the base of `dtype`; `expected`: the oracle's, in float64."""
    here = Checkpoint.open(LocalFolder(base), name="base")
    told = convert.to_dense(convert.read_patch(LocalFolder(patch), "", here), tmp_path / "dense", here).as_json()
    assert told["is_exact"]
    folded = fold(base, tmp_path / "dense", tmp_path / "dense-out")
    found = {key: value for file in folded.glob("*.safetensors") for key, value in load_file(file).items()}
    error = roundings(found, {key: expected[key] for key in found}, DTYPES[dtype])
    record(kind, name, dtype, "the kind's own oracle, float64", error, "as a dense patch")
    assert error <= 1.0


def check_lora(
    kind: str, architecture: Architecture, base: Path, patch: Path, expected: Mapping[str, torch.Tensor], tmp_path: Path
) -> None:
    """Convert `patch` to a LoRA, which peft loads on the float32 base; `expected`: the oracle's weights, float64."""
    here = Checkpoint.open(LocalFolder(base), name="base")
    found = convert.read_patch(LocalFolder(patch), "", here)
    assert convert.to_kind(found, tmp_path / "as-lora", "lora", here, "tiny/base").as_json()["is_exact"]
    loaded: Any = PeftModel.from_pretrained(architecture.loader.from_pretrained(base), str(tmp_path / "as-lora"))
    error = roundings(loaded.double().merge_and_unload().state_dict(), expected, torch.float32)
    record(kind, architecture.name, "float32", "the kind's own oracle, float64, loaded by peft", error, "as a LoRA")
    assert error <= 1.0


def check_logits(
    kind: str, architecture: Architecture, dtype: str, base: Path, patch: Path, adapted: Any, tmp_path: Path
) -> None:
    """Fold a patch into the base of `dtype` and compare the output, run in float32, with that of the live adapter."""
    expected = output(adapted, architecture).double()
    merged: Any = architecture.loader.from_pretrained(fold(base, patch, tmp_path / "out"))
    found = output(merged.float(), architecture).double()
    error = float((found - expected).abs().max() / expected.abs().max())
    record(kind, architecture.name, dtype, "live adapter", error, "logits")
    assert error <= LOGITS_OF[dtype]


def trained(model: PreTrainedModel, config: Any, folder: Path, *, seed: int = 1, std: float = 0.05) -> PeftModel:
    """`model` with an adapter of this peft configuration whose trainable numbers are random, saved to `folder`.

    `model` is changed: peft puts its layers into it.
    """
    from peft import get_peft_model

    model.name_or_path = "tiny/base"
    torch.manual_seed(seed)
    adapted: Any = get_peft_model(model, config, autocast_adapter_dtype=False)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * std)
    adapted.create_or_update_model_card = lambda folder: None  # which would take as long as all the rest
    # Said outright, because peft would otherwise ask the network whether the base's vocabulary was resized.
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    evaluated: PeftModel = adapted.eval()
    return evaluated


def prepared(
    architecture: Architecture, dtype: str, config: Any, tmp_path: Path, **options: Any
) -> tuple[Path, Path, PeftModel]:
    """A base saved in `dtype`, an adapter trained on the same values in float32, and the live adapted model."""
    base = tiny.saved(architecture.make(dtype=DTYPES[dtype]), tmp_path / "base")
    model: Any = architecture.make(dtype=DTYPES[dtype])
    model = model.float()
    return base, tmp_path / "patch", trained(model, config, tmp_path / "patch", **options)


def read(patch: Path, base: Path) -> Patch:
    """The patch, read with its base."""
    return patches.read(LocalFolder(patch), base=Checkpoint.open(LocalFolder(base)))
