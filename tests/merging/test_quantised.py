"""Quantised bases against bitsandbytes itself, and FP8 against its formula in float64."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import bitsandbytes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from adapterhub.merging.checkpoint import Checkpoint, LocalFolder
from adapterhub.merging.effects import read
from adapterhub.merging.engine import Result, run
from adapterhub.merging.errors import InvalidPatch, NotFoldable
from adapterhub.merging.ops.quantise import FORMATS, quantisation_error
from adapterhub.merging.plan import plan
from adapterhub.merging.quantised import SIMULATED, dequantised, narrow, quantisation_of, widen
from adapterhub.merging.recipes.canonical import Input
from adapterhub.merging.recipes.expression import parse
from tests.merging import tiny
from tests.merging.build import handle, random
from tests.merging.exactness.architectures import ARCHITECTURES

bnb: Any = bitsandbytes
LAYER = "model.layers.0.self_attn.q_proj.weight"
KINDS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16},
    "nf4 twice": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_compute_dtype": torch.bfloat16},
    "int8": {"load_in_8bit": True},
}


def quantise(kind: str, tmp_path: Path) -> tuple[Path, Any]:
    """A tiny Llama saved by transformers with bitsandbytes' weights, and the quantised model.

    Rows are whole blocks: where they are not, the library's CPU kernel (0.50) takes the wrong blocks' scales.
    """
    model = ARCHITECTURES["llama"].make(dtype=torch.bfloat16, hidden_size=64, intermediate_size=128)
    plain = tiny.saved(model, tmp_path / "plain")
    config: Any = BitsAndBytesConfig
    quantised = AutoModelForCausalLM.from_pretrained(
        plain, quantization_config=config(**KINDS[kind]), device_map="cpu", dtype=torch.bfloat16
    )
    return tiny.saved(quantised, tmp_path / "quantised"), quantised


def their_weights(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for name, module in model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            yield name, bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
        elif isinstance(module, bnb.nn.Linear8bitLt):
            yield name, bnb.functional.int8_vectorwise_dequant(module.weight.data, module.weight.SCB).bfloat16()


def plain_parameters(model: Any) -> dict[str, torch.Tensor]:
    return {name: one.data for name, one in model.named_parameters() if not isinstance(one, _PACKED)}


_PACKED = (bnb.nn.Params4bit, bnb.nn.Int8Params)


def opened(folder: Path) -> Checkpoint:
    return Checkpoint.open(LocalFolder(folder))


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_what_bitsandbytes_dequantises(kind: str, tmp_path: Path) -> None:
    folder, model = quantise(kind, tmp_path)
    checkpoint = dequantised(opened(folder))
    expected = {**plain_parameters(model), **{f"{name}.weight": values for name, values in their_weights(model)}}
    assert checkpoint.tensors.keys() == expected.keys()
    assert "quantization_config" not in checkpoint.config
    for name, stored in checkpoint.tensors.items():
        assert stored.dtype == "BF16"
        assert torch.equal(read(stored), expected[name]), name


@pytest.mark.parametrize("scales", [(2, 2), (), (1,), (130,), (130, 1)], ids=str)
@pytest.mark.parametrize("name", ["weight_scale_inv", "weight_scale"])
def test_fp8_is_weight_times_its_scale(scales: tuple[int, ...], name: str, tmp_path: Path) -> None:
    weight = random(130, 200).to(torch.float8_e4m3fn)
    scale = random(*scales, seed=3).abs()
    save_file({"a.weight": weight, f"a.{name}": scale, "norm": random(4)}, tmp_path / "model.safetensors")
    config = {"quantization_config": {"quant_method": "fp8"}, "dtype": "float32"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = dequantised(opened(tmp_path))
    assert set(checkpoint.tensors) == {"a.weight", "norm"}
    spread = scale.double()
    if scales == (2, 2):
        spread = spread.repeat_interleave(128, 0)[:130].repeat_interleave(128, 1)[:, :200]
    elif scales == (130,):
        spread = spread[:, None]
    torch.testing.assert_close(
        read(checkpoint.tensors["a.weight"]).double(), weight.double() * spread, rtol=1e-7, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_every_8_bit_float_reads_as_torch_reads_it(dtype: torch.dtype) -> None:
    codes = torch.arange(256).to(torch.uint8).view(dtype)
    found = torch.from_numpy(widen(handle(codes)).copy())
    torch.testing.assert_close(found, codes.float(), rtol=0, atol=0, equal_nan=True)


@given(st.lists(st.floats(width=32), max_size=20))
def test_narrowing_rounds_as_torch_does(values: list[float]) -> None:
    single = np.array(values, np.float32)
    for name, dtype in (("BF16", torch.bfloat16), ("F16", torch.float16)):
        with np.errstate(over="ignore"):
            found = torch.from_numpy(narrow(single, name).view(np.int16)).view(dtype)
        torch.testing.assert_close(found, torch.from_numpy(single).to(dtype), rtol=0, atol=0, equal_nan=True)


def test_a_plain_base_stays_as_it_is(llama_folder: Path) -> None:
    checkpoint = opened(llama_folder)
    assert dequantised(checkpoint) is checkpoint
    assert quantisation_of(checkpoint.config) == "none"


def test_a_format_that_is_not_read_is_refused_by_name(tmp_path: Path) -> None:
    save_file({"a.qweight": torch.zeros(4, dtype=torch.int32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(NotFoldable, match="quantised as 'gptq'; nf4, fp4, int8, fp8 are read"):
        dequantised(opened(tmp_path))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (f"{LAYER}.absmax", torch.zeros(3)),
        (f"{LAYER}.absmax", None),
        (LAYER, torch.zeros(5, 1, dtype=torch.uint8)),
        (f"{LAYER}.quant_state.bitsandbytes__nf4", torch.tensor(list(b'{"shape": [-1]}'), dtype=torch.uint8)),
        (f"{LAYER}.quant_state.bitsandbytes__nf4", torch.tensor(list(b"[" * 30000), dtype=torch.uint8)),
    ],
    ids=str,
)
def test_packed_weights_that_do_not_go_together_are_refused(
    name: str, change: torch.Tensor | None, tmp_path: Path
) -> None:
    folder, _ = quantise("nf4", tmp_path)
    tensors: dict[str, Any] = load_file(folder / "model.safetensors") | {name: change}
    save_file({key: value for key, value in tensors.items() if value is not None}, folder / "model.safetensors")
    with pytest.raises(InvalidPatch, match=r"q_proj\.weight"):
        dequantised(opened(folder))


def test_quantising_nf4_is_what_bitsandbytes_does() -> None:
    W = random(40, 128)
    packed, state = bnb.functional.quantize_4bit(W, blocksize=64, quant_type="nf4")
    torch.testing.assert_close(FORMATS["nf4"](W), bnb.functional.dequantize_4bit(packed, state), rtol=1e-6, atol=1e-6)


def test_quantising_int8_is_what_bitsandbytes_does() -> None:
    W = random(40, 96)
    codes, scales, _ = bnb.functional.int8_vectorwise_quant(W.half())
    expected = codes.float() * scales[:, None] / 127
    difference = (FORMATS["int8"](W.half().float()) - expected).abs()
    assert int((difference > 1e-5).sum()) <= 4, "more than a tie, which the library rounds in another precision"


def test_the_formats_that_are_measured_have_a_formula() -> None:
    assert tuple(FORMATS) == SIMULATED


@pytest.mark.parametrize("quantisation", FORMATS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (1500, 130), (0, 4)], ids=str)
def test_the_error_is_that_of_the_whole_matrix(quantisation: str, shape: tuple[int, int]) -> None:
    W = random(*shape)
    expected = float((W - FORMATS[quantisation](W)).double().norm()) if W.numel() else 0.0
    assert quantisation_error(W, quantisation) == pytest.approx(expected, rel=1e-6)
    assert quantisation_error(torch.zeros(shape), quantisation) == 0.0


def merged(base: Path, adapter: Path, out: Path, *, quantisation: str = "unknown") -> Result:
    recipe = parse("base + a")
    folders = {"base": Input("base@1", LocalFolder(base)), "a": Input("a@1", LocalFolder(adapter), kind="lora")}
    inputs = {ref: replace(folders[ref.name], quantisation=quantisation) for ref in recipe.references()}
    return run(plan(recipe, inputs, memory_bytes=1 << 30), out)


@pytest.mark.parametrize("kind", ["nf4 twice", "int8"])
def test_an_adapter_folds_into_the_base_it_was_trained_on(kind: str, tmp_path: Path) -> None:
    folder, quantised = quantise(kind, tmp_path)
    plain = ARCHITECTURES["llama"].make(dtype=torch.bfloat16, hidden_size=64, intermediate_size=128)
    wide: Any = plain
    adapted = tiny.adapter(wide.float(), tmp_path / "a", target_modules=["q_proj", "down_proj"])
    result = merged(folder, tmp_path / "a", tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config
    assert "model.layers.0.self_attn.q_proj.weight.absmax" not in found
    theirs = dict(their_weights(quantised))
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        module: Any = adapted.get_submodule(f"base_model.model.{name}")
        delta = 2.0 * module.lora_B["default"].weight.double() @ module.lora_A["default"].weight.double()
        assert torch.equal(found[f"{name}.weight"], (theirs[name].double() + delta.detach()).bfloat16())
    untouched = "model.layers.0.self_attn.k_proj"
    assert torch.equal(found[f"{untouched}.weight"], theirs[untouched])
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16
    assert result.report["mostly_quantisation"] == {}


def test_a_fold_says_how_large_the_quantisation_is_beside_the_delta(tmp_path: Path) -> None:
    plain = ARCHITECTURES["llama"].make(dtype=torch.float32)
    base = tiny.saved(plain, tmp_path / "base")
    tiny.adapter(plain, tmp_path / "a", target_modules=["q_proj"])
    report = merged(base, tmp_path / "a", tmp_path / "out", quantisation="nf4").report
    W = load_file(base / "model.safetensors")[LAYER]
    delta = (load_file(tmp_path / "out" / "model.safetensors")[LAYER].double() - W.double()).norm()
    expected = float((W - FORMATS["nf4"](W)).double().norm() / delta)
    assert report["tensors"][LAYER]["quantisation_error"] == pytest.approx(expected, rel=1e-4)
    assert report["tensors"][LAYER]["survives"] == 1.0
    assert (LAYER in report["mostly_quantisation"]) == (expected > 1)


def test_the_share_that_survives_is_that_of_a_delta_below_the_last_place(tmp_path: Path) -> None:
    base = tiny.saved(tiny.llama(dtype=torch.bfloat16), tmp_path / "base")
    tiny.adapter(tiny.llama(), tmp_path / "a", target_modules=["q_proj"], lora_alpha=1e-4)
    report = merged(base, tmp_path / "a", tmp_path / "out").report
    assert report["survives"] < 0.5
    assert set(report["mostly_lost"]) == {name for name in report["tensors"] if "q_proj" in name}
