"""Verdicts on patches for engines, and what is rewritten: deltas are held against torch's and peft's, in float64.

What engines' own loaders do is asked in tests/clients/test_serveable.py; here are kinds, layouts and versions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file

from adapterhub.merging import serveability
from adapterhub.merging.checkpoint import Checkpoint, LocalFolder
from adapterhub.merging.errors import InvalidPatch, NotRepresentable, UnknownEngine, UnknownSite
from adapterhub.merging.patches import kinds
from adapterhub.merging.serveability import Verdict
from adapterhub.merging.serveable import engines
from adapterhub.merging.serving_features import look
from adapterhub.merging.serving_rules import FEATURES, asked, table
from adapterhub.merging.site_deltas import site_deltas
from tests.merging import tiny
from tests.merging.exactness.architectures import ARCHITECTURES
from tests.merging.exactness.compare import prepared, trained
from tests.merging.test_fused import PHI3, llama_of_phi3

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to")

QKV = ["q_proj", "k_proj", "v_proj"]


def opened(base: Path | None) -> Checkpoint | None:
    return None if base is None else Checkpoint.open(LocalFolder(base), name="tiny/base")


def verdict(patch: Path, engine: str, base: Path | None, out: Path | None = None) -> Verdict:
    """The verdict, and what is written where `out` is given: told to be exact."""
    spec, version = asked(engine, engines())
    found = look(LocalFolder(patch), "", spec, version, opened(base))
    said = serveability.judge(found)
    if out is not None:
        assert serveability.write(found, said, out).as_json()["is_exact"]
    return said


def merged(model: Any, patch: Path) -> dict[str, torch.Tensor]:
    """The values that peft merges a LoRA into, in float64."""
    loaded: Any = PeftModel.from_pretrained(model, str(patch))
    values: dict[str, torch.Tensor] = loaded.double().merge_and_unload().state_dict()
    return values


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        float((value - other[name]).abs().max()) < 1e-6 for name, value in one.items()
    )


# ---- the registry ----------------------------------------------------------------------------------------------------


def test_every_engine_says_what_it_is_and_only_of_features_that_are_known() -> None:
    assert list(engines()) == ["gguf", "sglang", "vllm"]
    for engine in engines().values():
        assert engine.source
        assert engine.form in kinds()
        for rule in engine.rules:
            assert rule.feature in FEATURES, rule
            assert rule.does == "applies" or rule.why, rule


def test_rules_change_with_the_version() -> None:
    vllm = engines()["vllm"]
    rules = [vllm.rule("alpha_pattern", version) for version in ("0.31.0", "0.32.0", "0.33.0", "1.0")]
    assert [rule.does if rule else "applies" for rule in rules] == ["misapplies", "applies", "applies", "applies"]
    assert vllm.doubt("0.33.0") == ""
    assert "tested against vLLM 0.33.0 alone" in vllm.doubt("0.32.1")
    assert "older than 0.17.0" in vllm.doubt("0.9")
    assert engines()["gguf"].doubt("") != ""


def test_the_page_has_the_rules_as_they_are() -> None:
    page = (Path(__file__).parents[2] / "docs" / "serveable.md").read_text()
    for name in ("vllm", "sglang"):
        assert table(engines()[name]) in page, f"docs/serveable.md is behind the rules of {name}"
        assert engines()[name].tested in page


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("vlm@0.33.0", "did you mean vllm"),
        ("SGLang", "did you mean sglang"),
        ("tensorrt", "known are gguf, sglang, vllm"),
        ("vllm@new", "a version is a number, as in vllm@0.33.0"),
    ],
)
def test_an_unknown_engine_is_refused_with_a_near_one(text: str, says: str) -> None:
    with pytest.raises(UnknownEngine, match=says):
        asked(text, engines())


def test_a_version_that_is_not_said_is_the_tested_one() -> None:
    assert asked("sglang", engines())[1] == engines()["sglang"].tested
    assert asked("vllm@v0.31.0", engines())[1] == "0.31.0"
    assert asked("gguf", engines())[1] == ""


# ---- versions, ranks and scales --------------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny.saved(tiny.llama(), tmp_path / "base")


def test_patterns_that_an_older_version_does_not_read_are_written_out(base: Path, tmp_path: Path) -> None:
    patterns: dict[str, Any] = {"rank_pattern": {"q_proj": 2, "v_proj": 6}, "alpha_pattern": {"k_proj": 3}}
    tiny.adapter(tiny.llama(), tmp_path / "patch", target_modules=QKV, use_rslora=True, **patterns)
    assert verdict(tmp_path / "patch", "vllm", base).verdict == "as is"
    said = verdict(tmp_path / "patch", "vllm@0.31.0", base, tmp_path / "out")
    assert (said.verdict, said.as_is, said.rank) == ("after a rewrite", "misapplies", 6)
    told = {one.tensor.rpartition("layers.0.self_attn.")[2]: one.why for one in said.tensors}
    assert told["q_proj.lora_A.weight"] == "padded with zeros to one rank"
    assert told["k_proj.lora_A.weight"] == "its scale goes into B"
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {one.shape[0] for name, one in written.items() if "lora_A" in name} == {6}
    config = LoraConfig.from_pretrained(str(tmp_path / "out"))
    assert (config.r, config.rank_pattern, config.alpha_pattern, config.use_rslora) == (6, {}, {}, False)
    assert same(merged(tiny.llama(), tmp_path / "out"), merged(tiny.llama(), tmp_path / "patch"))


def test_a_half_precision_adapter_keeps_its_delta(tmp_path: Path) -> None:
    base = tiny.saved(tiny.llama(dtype=torch.bfloat16), tmp_path / "base")
    alphas = {"q_proj": 3, "v_proj": 5}
    tiny.adapter(tiny.llama(dtype=torch.bfloat16), tmp_path / "patch", target_modules=QKV, alpha_pattern=alphas)
    said = verdict(tmp_path / "patch", "sglang", base, tmp_path / "out")
    assert (said.verdict, said.as_is) == ("after a rewrite", "misapplies")
    before, after = (deltas(tmp_path / one) for one in ("patch", "out"))
    assert before.keys() == after.keys()
    for name, one in before.items():
        assert float((after[name] - one).norm() / one.norm()) < 1e-6


def deltas(patch: Path) -> dict[str, torch.Tensor]:
    """alpha / r · B @ A by module in float64, from the files alone."""
    config = LoraConfig.from_pretrained(str(patch))
    tensors = load_file(patch / "adapter_model.safetensors")
    found = {}
    for name, A in tensors.items():
        if "lora_A" in name:
            module = name.removesuffix(".lora_A.weight")
            alpha = config.alpha_pattern.get(module.rpartition(".")[2], config.lora_alpha)
            B = tensors[f"{module}.lora_B.weight"]
            found[module] = alpha / len(A) * B.double() @ A.double()
    return found


# ---- layouts ---------------------------------------------------------------------------------------------------------


def test_a_llamas_adapter_is_joined_for_vllms_phi3(tmp_path: Path) -> None:
    base = tiny.saved(PHI3.make(), tmp_path / "base")
    config = LoraConfig(target_modules=["q_proj", "v_proj", "down_proj"], r=2)
    apart = trained(llama_of_phi3(), config, tmp_path / "patch").double().merge_and_unload().state_dict()
    said = verdict(tmp_path / "patch", "vllm", base, tmp_path / "out")
    assert (said.verdict, said.as_is, said.rank) == ("after a rewrite", "refuses", 4)
    found = merged(PHI3.make(), tmp_path / "out")
    for number in range(2):
        stem = f"model.layers.{number}.self_attn."
        whole = torch.cat([apart[f"{stem}{one}.weight"] for one in QKV])
        torch.testing.assert_close(found[f"{stem}qkv_proj.weight"], whole, rtol=0, atol=1e-6)


def test_phi3s_adapter_is_cut_for_a_llama(tmp_path: Path) -> None:
    base = tiny.saved(llama_of_phi3(), tmp_path / "base")
    config = LoraConfig(target_modules=["qkv_proj", "gate_up_proj"], r=2)
    whole = trained(PHI3.make(), config, tmp_path / "patch").double().merge_and_unload().state_dict()
    said = verdict(tmp_path / "patch", "vllm", base, tmp_path / "out")
    assert (said.verdict, said.as_is) == ("after a rewrite", "refuses")
    assert {one.why for one in said.tensors} == {"cut into its parts"}
    found = merged(llama_of_phi3(), tmp_path / "out")
    for number in range(2):
        stem = f"model.layers.{number}.self_attn."
        parts = torch.cat([found[f"{stem}{one}.weight"] for one in QKV])
        torch.testing.assert_close(parts, whole[f"{stem}qkv_proj.weight"], rtol=0, atol=1e-6)


def test_an_adapter_of_another_model_is_refused_with_its_module(base: Path, tmp_path: Path) -> None:
    tiny.adapter(tiny.gpt2(), tmp_path / "patch", target_modules=["c_attn"], fan_in_fan_out=True)
    with pytest.raises(UnknownSite, match=r"h\.0\.attn\.c_attn"):
        verdict(tmp_path / "patch", "vllm", base)


def test_a_model_without_adapters_serves_none(tmp_path: Path) -> None:
    base = tiny.saved(tiny.gpt2(), tmp_path / "base")
    tiny.adapter(tiny.gpt2(), tmp_path / "patch", target_modules=["c_attn"], fan_in_fan_out=True)
    said = verdict(tmp_path / "patch", "vllm", base)
    assert (said.verdict, said.as_is) == ("not", "refuses")
    assert {one.why for one in said.tensors} == {"its class of the model does not support LoRA"}
    # and SGLang finds no `layers.N.` in the names
    assert verdict(tmp_path / "patch", "sglang", base).as_is == "ignores"


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize("names", [["gate_up_proj", "down_proj"], ["gate_up_proj"]], ids=["all", "some"])
def test_one_adapter_of_all_experts_becomes_one_for_each_weight(names: list[str], engine: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES["mixtral"]
    parameters = [f"mlp.experts.{name}" for name in names]
    config = LoraConfig(target_modules=QKV, target_parameters=parameters, r=3, lora_alpha=5)
    base, patch, adapted = prepared(architecture, "float32", config, tmp_path)
    said = verdict(patch, engine, base, tmp_path / "out")
    assert said.verdict == "after a rewrite"
    assert said.as_is == ("refuses" if engine == "sglang" else "ignores")
    assert verdict(tmp_path / "out", engine, base).verdict == "as is"
    before = architecture.make().double().state_dict()
    after = adapted.double().merge_and_unload().state_dict()
    found = deltas(tmp_path / "out")
    experts = {name: one for name, one in found.items() if ".experts." in name}
    count = before["model.layers.0.mlp.experts.down_proj"].shape[0]
    # SGLang takes an expert's gate and up together, and its down apart
    parts = 3 if engine == "vllm" or len(names) == 2 else 2
    assert len(experts) == 2 * count * parts
    for module, delta in experts.items():
        layer, expert, part = (module.split(".")[place] for place in (4, 7, 8))
        stem = f"model.layers.{layer}.mlp.experts."
        whole = {one: after[stem + one] - before[stem + one] for one in ("gate_up_proj", "down_proj")}
        gate, up = whole["gate_up_proj"][int(expert)].chunk(2)
        expected = {"w1": gate, "w3": up, "w2": whole["down_proj"][int(expert)]}[part]
        torch.testing.assert_close(delta, expected, rtol=0, atol=1e-6)


# ---- kinds -----------------------------------------------------------------------------------------------------------


def test_loha_is_written_as_a_lora(tmp_path: Path) -> None:
    config = peft.LoHaConfig(target_modules=["q_proj", "down_proj"], r=3)
    base, patch, adapted = prepared(ARCHITECTURES["llama"], "float32", config, tmp_path)
    said = verdict(patch, "vllm", base, tmp_path / "out")
    assert (said.verdict, said.as_is, said.rank) == ("after a rewrite", "refuses", 9)
    expected = adapted.double().merge_and_unload().state_dict()
    assert same(merged(ARCHITECTURES["llama"].make(), tmp_path / "out"), expected)


def test_adalora_on_a_model_without_adapters_is_not_served(tmp_path: Path) -> None:
    config = peft.AdaLoraConfig(target_modules=["c_attn"], init_r=3, total_step=10)
    base, patch, _ = prepared(ARCHITECTURES["gpt2"], "float32", config, tmp_path)
    said = verdict(patch, "vllm", base)
    assert said.verdict == "not"
    assert {one.why for one in said.tensors} == {"its class of the model does not support LoRA"}


def test_a_kind_without_sisters_gets_them_for_sglang(tmp_path: Path) -> None:
    config = peft.LoHaConfig(target_modules=["q_proj"], r=2)
    base, patch, adapted = prepared(ARCHITECTURES["llama"], "float32", config, tmp_path)
    said = verdict(patch, "sglang", base, tmp_path / "out")
    assert said.verdict == "after a rewrite"
    assert any("v_proj.lora_A" in name for name in load_file(tmp_path / "out" / "adapter_model.safetensors"))
    expected = adapted.double().merge_and_unload().state_dict()
    assert same(merged(ARCHITECTURES["llama"].make(), tmp_path / "out"), expected)


def test_what_has_no_low_rank_form_is_not_served_and_says_why(tmp_path: Path) -> None:
    config: Any = peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[])
    base, patch, _ = prepared(ARCHITECTURES["llama"], "float32", config, tmp_path)
    said = verdict(patch, "vllm", base)
    assert said.verdict == "not"
    assert "a scale term has no exact low-rank form" in said.tensors[0].why
    with pytest.raises(NotRepresentable, match="vLLM does not serve all of this patch, so nothing is written"):
        verdict(patch, "vllm", base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_prompt_acts_at_run_time(base: Path, tmp_path: Path) -> None:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    peft.get_peft_model(tiny.llama(), config).save_pretrained(str(tmp_path / "patch"))
    said = verdict(tmp_path / "patch", "sglang", base)
    assert (said.verdict, said.as_is) == ("not", "refuses")
    assert "acts at run time" in said.tensors[0].why


def test_a_model_is_no_patch_and_nothing_is_one(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidPatch, match="a whole model"):
        verdict(base, "vllm", None)
    with pytest.raises(InvalidPatch, match="no patch of a known kind"):
        verdict(tmp_path, "vllm", None)


# ---- the base --------------------------------------------------------------------------------------------------------


def test_without_the_base_what_it_alone_tells_is_asked_for(base: Path, tmp_path: Path) -> None:
    tiny.adapter(tiny.llama(), tmp_path / "plain", target_modules=QKV)
    said = verdict(tmp_path / "plain", "vllm", None, tmp_path / "out")
    assert said.verdict == "as is"
    assert any("without --base" in one for one in said.doubts)
    tiny.adapter(tiny.llama(), tmp_path / "pissa", target_modules=QKV, init_lora_weights="pissa")
    said = verdict(tmp_path / "pissa", "vllm", None)
    assert said.verdict == "not"
    assert said.tensors[0].why.endswith("name the base with --base")
    tiny.adapter(tiny.llama(), tmp_path / "lone", target_modules=["q_proj"])
    assert "v_proj says the base" in verdict(tmp_path / "lone", "sglang", None).tensors[0].why
    assert verdict(tmp_path / "lone", "sglang", base).verdict == "after a rewrite"


def test_a_prefix_that_the_base_has_otherwise_is_found_and_mended(base: Path, tmp_path: Path) -> None:
    """An adapter of the bare model loads on vLLM, and nothing of it is applied."""
    bare: Any = tiny.llama()
    tiny.adapter(bare.model, tmp_path / "patch", target_modules=QKV)
    said = verdict(tmp_path / "patch", "vllm", base, tmp_path / "out")
    assert (said.verdict, said.as_is) == ("after a rewrite", "ignores")
    assert "called model.layers.0.self_attn.k_proj, as the base calls it" in said.tensors[0].why
    mended, adapted = merged(tiny.llama(), tmp_path / "out"), merged(tiny.llama().model, tmp_path / "patch")
    assert all(torch.allclose(mended[f"model.{name}"], one, rtol=0, atol=1e-6) for name, one in adapted.items())


# ---- llama.cpp -------------------------------------------------------------------------------------------------------


def test_llama_cpp_gets_its_own_file_and_needs_no_rewrite_of_it(base: Path, tmp_path: Path) -> None:
    scales: dict[str, Any] = {"alpha_pattern": {"q_proj": 3}, "rank_pattern": {"v_proj": 2}}
    tiny.adapter(tiny.llama(), tmp_path / "patch", target_modules=[*QKV, "lm_head"], **scales)
    said = verdict(tmp_path / "patch", "gguf", base, tmp_path / "out")
    assert (said.verdict, said.as_is) == ("after a rewrite", "refuses")
    assert [one.name for one in (tmp_path / "out").iterdir()] == ["adapter.gguf"]
    again = verdict(tmp_path / "out", "gguf", base)
    assert (again.verdict, again.as_is) == ("as is", "applies")
    found = site_deltas(kinds()["gguf"].read(LocalFolder(tmp_path / "out"), "", opened(base)))
    before = {name: one.double() for name, one in tiny.llama().state_dict().items()}
    after = merged(tiny.llama(), tmp_path / "patch")
    assert {name for name in after if not torch.equal(after[name], before[name])} == found.keys()
    for site, delta in found.items():
        expected = after[site] - before[site]
        torch.testing.assert_close(delta.dense(before[site]), expected, rtol=0, atol=1e-6)


def test_what_has_no_place_in_a_gguf_file_is_named(base: Path, tmp_path: Path) -> None:
    tiny.adapter(tiny.llama(), tmp_path / "patch", target_modules=["embed_tokens", "q_proj"])
    said = {one.tensor: one for one in verdict(tmp_path / "patch", "gguf", base).tensors}
    row = said["base_model.model.model.embed_tokens.lora_embedding_A"]
    assert row.verdict == "not"
    assert "model.embed_tokens: no tensor of a GGUF adapter" in row.why
    assert said["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"].verdict == "rewritten"
    unnamed = {one.tensor: one for one in verdict(tmp_path / "patch", "gguf", None).tensors}
    assert unnamed["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"].why.endswith("--base FOLDER")
