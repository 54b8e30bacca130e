"""LoRAs change between fused and separate projections: deltas in float64, the models' own splitting, and peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import LlamaConfig, LlamaForCausalLM

from adapterhub.merging import convert, patches
from adapterhub.merging.checkpoint import Checkpoint, LocalFolder
from adapterhub.merging.errors import NotRepresentable, ShapeMismatch, UnknownSite
from adapterhub.merging.fused import Layout, relaid
from adapterhub.merging.site_deltas import site_deltas
from tests.merging import tiny
from tests.merging.exactness.architectures import ARCHITECTURES
from tests.merging.exactness.compare import fold, prepared, record, roundings, trained

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to")

PHI3 = ARCHITECTURES["phi3"]
SPLIT = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"]


def opened(base: Path) -> Checkpoint:
    return Checkpoint.open(LocalFolder(base), name="base")


def converted(patch: Path, out: Path, layout: Layout, base: Path) -> Path:
    found = relaid(patches.read(LocalFolder(patch)), layout, opened(base))
    assert convert.to_kind(found, out, "lora", None, "tiny/base").as_json()["is_exact"]
    return out


def deltas(patch: Path) -> dict[str, torch.Tensor]:
    """B @ A times the scale of each site in float64, (out, in) whatever the base stores."""
    found = {}
    for site, delta in site_deltas(patches.read(LocalFolder(patch))).items():
        (term,) = delta.terms
        A, B = (torch.tensor(_values(term.fields[name])) for name in ("A", "B"))
        found[site.removesuffix(".weight")] = term.scale * B @ A
    return found


def _values(handle: Any) -> Any:
    from adapterhub.merging.encodings import as_floats

    return as_floats(handle)


def llama_of_phi3() -> Any:
    """A Llama of Phi-3's sizes and values, its projections apart."""
    phi3 = PHI3.make()
    config: Any = phi3.config
    sizes = {name: getattr(config, name) for name in LlamaConfig().to_dict() if hasattr(config, name)}
    for name in ("model_type", "architectures", "transformers_version", "rope_parameters"):
        sizes.pop(name, None)
    model: Any = LlamaForCausalLM(LlamaConfig(**sizes))
    state: dict[str, torch.Tensor] = {}
    for name, value in phi3.state_dict().items():
        if "qkv_proj" in name:
            parts = value.split([16, 8, 8])
            state |= {name.replace("qkv_proj", one): part for one, part in zip(SPLIT[:3], parts, strict=True)}
        elif "gate_up_proj" in name:
            state |= {
                name.replace("gate_up_proj", one): part for one, part in zip(SPLIT[3:], value.chunk(2), strict=True)
            }
        else:
            state[name] = value
    model.load_state_dict(state)
    return model.eval()


@pytest.mark.parametrize("targets", [SPLIT, ["q_proj", "v_proj", "o_proj"]], ids=["all", "some"])
def test_a_llamas_lora_goes_on_phi3_as_peft_loads_it(targets: list[str], tmp_path: Path) -> None:
    base = tiny.saved(PHI3.make(), tmp_path / "base")
    config = LoraConfig(target_modules=targets, r=2, lora_alpha=3, rank_pattern={"v_proj": 3})
    merged = trained(llama_of_phi3(), config, tmp_path / "patch").double().merge_and_unload().state_dict()
    fused = converted(tmp_path / "patch", tmp_path / "fused", "fused", base)
    loaded: Any = PeftModel.from_pretrained(PHI3.make(), str(fused))
    found = loaded.double().merge_and_unload().state_dict()
    expected = {}
    for name in found:
        apart = {"qkv_proj": SPLIT[:3], "gate_up_proj": SPLIT[3:]}.get(name.split(".")[-2])
        last = name.split(".")[-2]
        expected[name] = torch.cat([merged[name.replace(last, one)] for one in apart]) if apart else merged[name]
    error = roundings(found, expected, torch.float32)
    assert error <= 1.0
    folded = PHI3.loader.from_pretrained(fold(base, fused, tmp_path / "out")).state_dict()
    error = roundings(folded, expected, torch.float32)
    record("lora (fused)", "phi3", "float32", "peft merge_and_unload of the split one, float64", error, "as a LoRA")
    assert error <= 1.0


def test_phi3s_lora_goes_on_a_llama_bit_for_bit_but_shared(tmp_path: Path) -> None:
    config = LoraConfig(target_modules=["qkv_proj", "gate_up_proj", "down_proj"], r=2, lora_alpha=3, use_dora=True)
    base, patch, adapted = prepared(PHI3, "float32", config, tmp_path)
    merged = adapted.double().merge_and_unload().state_dict()
    split = converted(patch, tmp_path / "split", "split", base)
    loaded: Any = PeftModel.from_pretrained(llama_of_phi3(), str(split))
    found = loaded.double().merge_and_unload().state_dict()
    for n, (last, sizes) in enumerate({"qkv_proj": [16, 8, 8], "gate_up_proj": [24, 24]}.items()):
        parent = ("self_attn", "mlp")[n]
        for layer in range(2):
            for part, rows in zip(
                SPLIT[3 * n : 3 + 2 * n],
                merged[f"model.layers.{layer}.{parent}.{last}.weight"].split(sizes),
                strict=True,
            ):
                error = roundings(
                    {"W": found[f"model.layers.{layer}.{parent}.{part}.weight"]}, {"W": rows}, torch.float32
                )
                record(
                    "lora (dora)",
                    "phi3",
                    "float32",
                    "peft merge_and_unload of the fused one, float64",
                    error,
                    "as a LoRA",
                )
                assert error <= 1.0


@pytest.mark.parametrize("kind", ["grouped", "shared", "plain"])
def test_falcons_heads_are_split_as_falcon_splits_them(kind: str, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {
        "grouped": {},
        "shared": {"new_decoder_architecture": False, "multi_query": True},
        "plain": {"new_decoder_architecture": False, "multi_query": False},
    }[kind]
    falcon = ARCHITECTURES["falcon"]
    model: Any = falcon.make(**sizes)
    base = tiny.saved(model, tmp_path / "base")
    trained(model, LoraConfig(target_modules=["query_key_value", "dense"], r=2), tmp_path / "patch")
    split = converted(tmp_path / "patch", tmp_path / "split", "split", base)
    again = converted(split, tmp_path / "again", "fused", base)
    whole, apart, back = map(deltas, (tmp_path / "patch", split, again))
    assert whole.keys() == back.keys()
    x = torch.randn(1, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    fresh: Any = falcon.make(**sizes)
    attention = fresh.transformer.h[0].self_attention
    site = "transformer.h.0.self_attention."
    query, key, value = attention._split_heads(x @ whole[site + "query_key_value"].T)
    heads = {"grouped": 2, "shared": 1, "plain": 4}[kind]
    for name, expected in zip(SPLIT[:3], (query, key, value), strict=True):
        found = (x @ apart[site + name].T).view(1, 5, -1, 4)
        if kind == "grouped" and name != "q_proj":
            found = found.repeat_interleave(4 // heads, 2)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for one in whole:
        torch.testing.assert_close(back[one], whole[one], rtol=1e-12, atol=1e-12)


def test_gpt2s_c_attn_is_split_in_thirds_and_comes_back_transposed(tmp_path: Path) -> None:
    base, patch, adapted = prepared(
        ARCHITECTURES["gpt2"], "float32", LoraConfig(target_modules=["c_attn"], r=2), tmp_path
    )
    split = converted(patch, tmp_path / "split", "split", base)
    whole, apart = deltas(patch), deltas(split)
    for layer in range(2):
        attention = f"transformer.h.{layer}.attn."
        joined = torch.cat([apart[attention + name] for name in SPLIT[:3]])
        assert torch.equal(joined, whole[attention + "c_attn"])
    again = converted(split, tmp_path / "again", "fused", base)
    loaded: Any = PeftModel.from_pretrained(ARCHITECTURES["gpt2"].make(), str(again))
    expected = adapted.double().merge_and_unload().state_dict()
    assert roundings(loaded.double().merge_and_unload().state_dict(), expected, torch.float32) <= 1.0


def test_what_has_no_other_layout_is_refused(tmp_path: Path) -> None:
    base, patch, _ = prepared(PHI3, "float32", LoraConfig(target_modules=["qkv_proj"], r=2), tmp_path)
    found = patches.read(LocalFolder(patch))
    with pytest.raises(NotRepresentable, match="it has that layout already"):
        relaid(found, "fused", opened(base))
    llama = tiny.saved(ARCHITECTURES["llama"].make(), tmp_path / "llama")
    with pytest.raises(NotRepresentable, match="is 'llama', whose projections are not fused"):
        relaid(found, "split", opened(llama))
    trained(llama_of_phi3(), LoraConfig(target_modules=["q_proj"], r=2, use_dora=True), tmp_path / "dora")
    with pytest.raises(NotRepresentable, match="magnitudes are of one rank"):
        relaid(patches.read(LocalFolder(tmp_path / "dora")), "fused", opened(base))
    wide: Any = ARCHITECTURES["llama"].make(hidden_size=32)
    trained(wide, LoraConfig(target_modules=["q_proj"], r=2), tmp_path / "wide")
    with pytest.raises(ShapeMismatch):
        relaid(patches.read(LocalFolder(tmp_path / "wide")), "fused", opened(base))
    deep: Any = ARCHITECTURES["llama"].make(num_hidden_layers=3)
    trained(deep, LoraConfig(target_modules=["q_proj"], r=2), tmp_path / "deep")
    with pytest.raises(UnknownSite):
        relaid(patches.read(LocalFolder(tmp_path / "deep")), "fused", opened(base))
