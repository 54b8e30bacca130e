"""What `patch serveable` says of engines, held against the engines' own loaders: adapter by adapter, tensor by tensor.

The truth of a delta is peft's merge in float64. What an engine loads whole has to be that; what is said to be refused,
ignored or served as something else has to be just so.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from adapterhub.merging import serveability
from adapterhub.merging.checkpoint import Checkpoint, LocalFolder
from adapterhub.merging.serveability import Verdict
from adapterhub.merging.serveable import engines, sglang, vllm
from adapterhub.merging.serving_features import look
from tests.clients.server import ROOT
from tests.merging import tiny
from tests.merging.exactness.architectures import ARCHITECTURES
from tests.merging.exactness.compare import prepared

pytestmark = [
    pytest.mark.slow,
    # peft 0.21 takes the bias of a lora_B for a factor that was not gathered
    pytest.mark.filterwarnings("ignore:.*LoRA tensor.s. have invalid shape"),
]

QKVO = ["q_proj", "k_proj", "v_proj", "o_proj"]
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": QKVO},
    "everything": {"target_modules": [*QKVO, "gate_proj", "up_proj", "down_proj"]},
    "regex": {"target_modules": r".*\.(q_proj|k_proj|v_proj)"},
    "rslora": {"target_modules": QKVO, "use_rslora": True},
    "dora": {"target_modules": QKVO, "use_dora": True},
    "alpha_pattern": {"target_modules": QKVO, "alpha_pattern": {"q_proj": 3, "o_proj": 5}},
    "rank_pattern": {"target_modules": QKVO, "rank_pattern": {"o_proj": 2}},
    "both_patterns": {"target_modules": QKVO, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    "rslora_patterns": {"target_modules": QKVO, "use_rslora": True, "rank_pattern": {"k_proj": 6}},
    "rank_24": {"target_modules": QKVO, "r": 24},
    "rank_600": {"target_modules": QKVO, "r": 600},
    "bias_said": {"target_modules": ["gate_proj", "up_proj"], "bias": "lora_only"},
    "bias": {"target_modules": QKVO, "bias": "lora_only"},
    "lora_bias": {"target_modules": QKVO, "lora_bias": True},
    "q_and_v": {"target_modules": ["q_proj", "v_proj"]},
    "lone": {"target_modules": ["q_proj", "up_proj"]},
    "keys": {"target_modules": ["k_proj", "o_proj"]},
    "gate": {"target_modules": ["gate_proj", "down_proj"]},
    "embedding": {"target_modules": ["embed_tokens", *QKVO]},
    "output": {"target_modules": ["lm_head", *QKVO]},
    "saved_head": {"target_modules": QKVO, "modules_to_save": ["lm_head"]},
    "saved_norm": {"target_modules": QKVO, "modules_to_save": ["norm"]},
    "rows": {"target_modules": QKVO, "trainable_token_indices": {"embed_tokens": [1, 5]}},
    "pissa": {"target_modules": QKVO, "init_lora_weights": "pissa"},
}
CHANGED: dict[str, Callable[[dict[str, Any], dict[str, torch.Tensor], dict[str, torch.Tensor]], None]] = {}
"""Adapters made of "plain" by a change of its configuration and tensors: `(config, tensors, the base's)`."""


def changed(function: Callable[[dict[str, Any], dict[str, torch.Tensor], dict[str, torch.Tensor]], None]) -> None:
    CHANGED[function.__name__] = function


@changed
def wrong_prefix(config: dict[str, Any], tensors: dict[str, torch.Tensor], base: dict[str, torch.Tensor]) -> None:
    """As trained on the bare model, without its head."""
    for name in list(tensors):
        tensors[name.replace("base_model.model.model.", "base_model.model.")] = tensors.pop(name)


@changed
def embedding_beside(config: dict[str, Any], tensors: dict[str, torch.Tensor], base: dict[str, torch.Tensor]) -> None:
    """As peft saves it where it thinks that the vocabulary was resized."""
    tensors["base_model.model.model.embed_tokens.weight"] = base["model.embed_tokens.weight"].clone()


@changed
def saved_and_untouched(
    config: dict[str, Any], tensors: dict[str, torch.Tensor], base: dict[str, torch.Tensor]
) -> None:
    config["modules_to_save"] = ["lm_head"]
    tensors["base_model.model.lm_head.weight"] = base["lm_head.weight"].clone()


@changed
def activated(config: dict[str, Any], tensors: dict[str, torch.Tensor], base: dict[str, torch.Tensor]) -> None:
    config["alora_invocation_tokens"] = [3, 4]


@changed
def lora_ga(config: dict[str, Any], tensors: dict[str, torch.Tensor], base: dict[str, torch.Tensor]) -> None:
    config["init_lora_weights"] = "lora_ga"


@changed
def corda(config: dict[str, Any], tensors: dict[str, torch.Tensor], base: dict[str, torch.Tensor]) -> None:
    config["init_lora_weights"] = "corda"


@changed
def replicated(config: dict[str, Any], tensors: dict[str, torch.Tensor], base: dict[str, torch.Tensor]) -> None:
    """Both layers, each once: what it says is what is there, and vLLM refuses it for having said so."""
    config["layer_replication"] = [[0, 2]]


@changed
def fused(config: dict[str, Any], tensors: dict[str, torch.Tensor], base: dict[str, torch.Tensor]) -> None:
    """One adapter of q, k and v, whose A is that of q: trained on a model that fuses them."""
    for number in range(2):
        stem = f"base_model.model.model.layers.{number}.self_attn."
        As = [tensors.pop(f"{stem}{one}_proj.lora_A.weight") for one in "qkv"]
        Bs = [tensors.pop(f"{stem}{one}_proj.lora_B.weight") for one in "qkv"]
        tensors[f"{stem}qkv_proj.lora_A.weight"], tensors[f"{stem}qkv_proj.lora_B.weight"] = As[0], torch.cat(Bs)
    config["target_modules"] = ["qkv_proj", "o_proj"]


ELSEWHERE = ("activated", "lora_ga", "corda", "replicated")
"""Factors that are held right and act wrongly: on every token, or on another base than they were made for."""


def truth_of(name: str, tensors: dict[str, torch.Tensor], plain: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The delta of a changed adapter by module."""
    if name != "fused":
        return plain
    found = dict(plain)
    for number in range(2):
        stem = f"model.layers.{number}.self_attn."
        A, B = (tensors[f"base_model.model.{stem}qkv_proj.lora_{one}.weight"].double() for one in "AB")
        for part, rows in zip("qkv", torch.split(2 * B @ A, [16, 8, 8]), strict=True):
            found[f"{stem}{part}_proj"] = rows
    return found


@dataclass(frozen=True)
class Corpus:
    """Adapters in folders. truth: their deltas by module in float64, where they are deltas. told: what engines said."""

    base: Path
    adapters: Path
    truth: dict[str, dict[str, torch.Tensor]]
    told: dict[str, tuple[dict[str, Any], Path]] = field(default_factory=dict)

    def asked(self, python: Path, engine: str) -> tuple[dict[str, Any], Path]:
        """What the engine's loader said of all adapters, and where the deltas that it holds lie."""
        if engine not in self.told:
            self.told[engine] = asked(python, engine, self, self.adapters)
        return self.told[engine]

    def verdict(self, name: str, engine: str, out: Path | None = None) -> Verdict:
        spec = engines()[engine]
        base = Checkpoint.open(LocalFolder(self.base), name="tiny/base")
        found = look(LocalFolder(self.adapters / name), "", spec, spec.tested, base)
        verdict = serveability.judge(found)
        if out is not None:
            assert serveability.write(found, verdict, out).as_json()["is_exact"]
        return verdict


def llama() -> PreTrainedModel:
    """`tiny.llama` with biases in its attention."""
    config = LlamaConfig.from_dict(tiny.llama().config.to_dict() | {"attention_bias": True})
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    found: PreTrainedModel = model.float()
    return found


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("serveable")
    base = tiny.saved(llama(), folder / "base")
    before = {name: one.double() for name, one in llama().state_dict().items()}
    adapters, truth = folder / "adapters", {}
    for name, config in CONFIGS.items():
        merged: Any = tiny.adapter(llama(), adapters / name, **config).double()
        after = merged.merge_and_unload().state_dict()
        deltas = {key.removesuffix(".weight"): one - before[key] for key, one in after.items() if key in before}
        truth[name] = {key: one for key, one in deltas.items() if one.any()}
    config, tensors = read_adapter(adapters / "plain")
    for name, change in CHANGED.items():
        config, tensors = read_adapter(adapters / "plain")
        change(config, tensors, load_file(base / "model.safetensors"))
        truth[name] = truth_of(name, tensors, truth["plain"])
        (adapters / name).mkdir()
        (adapters / name / "adapter_config.json").write_text(json.dumps(config))
        save_file(tensors, adapters / name / "adapter_model.safetensors", {"format": "pt"})
    return Corpus(base, adapters, truth)


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    return json.loads((folder / "adapter_config.json").read_text()), load_file(folder / "adapter_model.safetensors")


def run(python: Path, scenario: str, *arguments: str | Path) -> str:
    """What a file of scenarios prints, run by an environment of its own."""
    command = [python, ROOT / "tests" / "clients" / f"{scenario}.py", *arguments]
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "HF_HUB_OFFLINE": "1"}
    environment |= {"VLLM_TARGET_DEVICE": "cpu", "VLLM_CONFIGURE_LOGGING": "0"}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def asked(python: Path, engine: str, corpus: Corpus, folder: Path) -> tuple[dict[str, Any], Path]:
    """What the engine's loader said of the adapters in a folder, and where the deltas that it holds lie: beside it."""
    out = folder.parent / f"{engine}-{folder.name}"
    out.mkdir()
    modules = [name.removesuffix(".weight") for name in load_file(corpus.base / "model.safetensors")]
    listed = out / "modules.txt"
    listed.write_text("\n".join(modules))
    third = listed if engine == "vllm" else corpus.base
    run(python, f"scenarios_serveable_{engine}", folder, out, third)
    return json.loads((out / "result.json").read_text()), out


def check_loaded(path: Path, truth: dict[str, torch.Tensor], base: Path) -> bool:
    """Whether an engine's deltas are the truth: the same modules but for zeros, equal but for float32's rounding."""
    found = {name: one for name, one in load_file(path).items() if one.any()}
    short = {name if "." in name or name == "lm_head" else f"model.{name}": one for name, one in found.items()}
    if short.keys() != truth.keys():
        return False
    # embeddings are (dim, tokens) in a LoRA and (tokens, dim) in the model
    turned = {name: one.T if name.endswith("embed_tokens") else one for name, one in short.items()}
    return all(float((turned[name] - one).norm() / one.norm()) < 2e-6 for name, one in truth.items())


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_what_is_said_of_each_adapter_is_what_the_loader_does(
    engine: str, corpus: Corpus, environment_of: Callable[[str], Path]
) -> None:
    told, deltas = corpus.asked(environment_of(engine), engine)
    assert told.keys() == {*CONFIGS, *CHANGED}
    wrong = {}
    for name, found in told.items():
        if "error" in found:
            does = "refuses"
        elif found.get("unplaced"):
            does = "ignores"
        else:
            is_true = check_loaded(deltas / f"{name}.safetensors", corpus.truth[name], corpus.base)
            does = "applies" if is_true else "other"
        said = corpus.verdict(name, engine).as_is
        if name in ELSEWHERE and said == "misapplies":
            does = {"applies": "other"}[does]
        if does != {"misapplies": "other", "ignores": "ignores" if engine == "vllm" else "other"}.get(said, said):
            wrong[name] = (said, does, found.get("error"))
    assert wrong == {}


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_what_is_rewritten_loads_as_the_same_deltas(
    engine: str, corpus: Corpus, environment_of: Callable[[str], Path], tmp_path: Path
) -> None:
    written = tmp_path / "written"
    for name in (*CONFIGS, *CHANGED):
        if corpus.verdict(name, engine).verdict != "not":
            corpus.verdict(name, engine, written / name)
    told, deltas = asked(environment_of(engine), engine, corpus, written)
    assert {name for name in corpus.truth if name not in told} == {
        *("dora", "bias", "lora_bias", "saved_head", "saved_norm", "rows", *ELSEWHERE),
        *(("rank_600",) if engine == "vllm" else ()),
    }
    for name, found in told.items():
        assert "error" not in found, (name, found)
        assert not found.get("unplaced"), name
        assert check_loaded(deltas / f"{name}.safetensors", corpus.truth[name], corpus.base), name


def test_each_tensor_alone_is_taken_by_vllm_as_is_said(corpus: Corpus, environment_of: Callable[[str], Path]) -> None:
    told, _ = corpus.asked(environment_of("vllm"), "vllm")
    wrong, seen = {}, set()
    for name, found in told.items():
        rows = {one.tensor: one for one in corpus.verdict(name, "vllm").tensors}
        assert rows.keys() == found["tensors"].keys()
        for tensor, does in found["tensors"].items():
            row = rows[tensor]
            seen.add(does)
            agrees = {
                "refused": row.as_is == "refuses",
                # what is passed over has to be the base's own value
                "passed over": row.as_is == "ignores" or (row.as_is == "applies" and "base_layer" in tensor),
                "unplaced": row.as_is == "ignores",
                # its configuration may still have the file refused, or mean something else by its tensors
                "loaded": row.as_is != "ignores",
            }
            if not agrees[does]:
                wrong[name, tensor] = (does, row)
    assert wrong == {}
    assert seen == {"refused", "passed over", "unplaced", "loaded"}


def test_vllm_is_started_with_the_rank_that_takes_the_adapter(
    corpus: Corpus, environment_of: Callable[[str], Path]
) -> None:
    told, _ = corpus.asked(environment_of("vllm"), "vllm")
    assert told["rank_24"]["refused_ranks"] == [8, 16]
    assert corpus.verdict("rank_24", "vllm").options == ("--enable-lora", "--max-lora-rank 32")
    assert told["rank_600"]["refused_ranks"] == [8, 16, 32, 512]
    row = corpus.verdict("rank_600", "vllm").tensors[0]
    assert (row.verdict, "its rank is 600" in row.why) == ("not", True)


@pytest.mark.parametrize("names", [["gate_up_proj", "down_proj"], ["down_proj"]], ids=["all", "some"])
def test_experts_are_packed_by_vllm_as_they_were_rewritten(
    names: list[str], environment_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """transformers holds all experts in one parameter, vLLM's Mixtral takes an adapter of each expert's weights."""
    architecture, python = ARCHITECTURES["mixtral"], environment_of("vllm")
    config = LoraConfig(target_modules=["q_proj"], target_parameters=[f"mlp.experts.{one}" for one in names], r=3)
    base, patch, adapted = prepared(architecture, "float32", config, tmp_path)
    spec, here = engines()["vllm"], Checkpoint.open(LocalFolder(base), name="tiny/base")
    found = look(LocalFolder(patch), "", spec, spec.tested, here)
    assert serveability.write(found, serveability.judge(found), tmp_path / "out").as_json()["is_exact"]
    assert run(python, "scenarios_serveable_vllm", "experts", tmp_path / "out", tmp_path / "deltas") == "loaded"
    before, after = architecture.make().double().state_dict(), adapted.double().merge_and_unload().state_dict()
    for key, delta in load_file(tmp_path / "deltas").items():
        layer, part = key.split(".")
        stem = f"model.layers.{layer}.mlp.experts."
        whole = {one: after[stem + one] - before[stem + one] for one in ("gate_up_proj", "down_proj")}
        gate, up = whole["gate_up_proj"].chunk(2, dim=1)
        torch.testing.assert_close(delta, {"w1": gate, "w2": whole["down_proj"], "w3": up}[part], rtol=0, atol=1e-6)
    if len(names) == 1:  # without the zeros of the other projections it is refused, as the rules say
        config_file, tensors = read_adapter(tmp_path / "out")
        some = tmp_path / "some"
        some.mkdir()
        (some / "adapter_config.json").write_text(json.dumps(config_file))
        save_file(
            {name: one for name, one in tensors.items() if ".w1." not in name}, some / "adapter_model.safetensors"
        )
        assert run(python, "scenarios_serveable_vllm", "experts", some, tmp_path / "no") == "refused"
        said = serveability.judge(look(LocalFolder(some), "", spec, spec.tested, here))
        assert (said.verdict, said.as_is) == ("after a rewrite", "refuses")
        assert any(one.why == "zeros for w1" for one in said.tensors)


GGUF = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
GGUF |= {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}


def test_what_is_written_for_llama_cpp_is_the_same_delta_as_its_library_reads_it(
    corpus: Corpus, environment_of: Callable[[str], Path], tmp_path: Path
) -> None:
    python, read = environment_of("sglang"), set()  # SGLang's environment has gguf-py
    for name in ("everything", "both_patterns", "rslora_patterns", "output", "pissa", "fused", "wrong_prefix"):
        assert corpus.verdict(name, "gguf", tmp_path / name).verdict == "after a rewrite"
        run(python, "scenarios_serveable_gguf", tmp_path / name / "adapter.gguf", tmp_path / f"{name}.safetensors")
        found = load_file(tmp_path / f"{name}.safetensors")
        expected = {gguf_name(module): gguf_rows(module, delta) for module, delta in corpus.truth[name].items()}
        assert found.keys() == expected.keys()
        for key, delta in expected.items():
            assert float((found[key] - delta).norm() / delta.norm()) < 2e-6, (name, key)
        read |= {key.rpartition("blk.")[2] for key in found}
    assert len(read) == 2 * len(GGUF) + 1


def gguf_name(module: str) -> str:
    parts = module.split(".")
    return f"blk.{parts[2]}.{GGUF[parts[-1]]}.weight" if len(parts) > 1 else "output.weight"


def gguf_rows(module: str, delta: torch.Tensor) -> torch.Tensor:
    """Rows of q and k as llama.cpp rotates them: pairs side by side. Source: convert_hf_to_gguf.py, permute."""
    heads = {"q_proj": 4, "k_proj": 2}.get(module.rpartition(".")[2])
    if heads is None:
        return delta
    return delta.reshape(heads, 2, len(delta) // heads // 2, -1).swapaxes(1, 2).reshape(delta.shape)


def test_which_modules_have_sizes_is_what_sglang_says(corpus: Corpus, environment_of: Callable[[str], Path]) -> None:
    asked = sorted({*sglang.NAMES, "dense", "fc1", "query_key_value", "c_attn", "q", "gate"})
    found = json.loads(run(environment_of("sglang"), "scenarios_serveable_sglang", "names", corpus.base, *asked))
    assert set(found) == sglang.NAMES


def test_which_models_take_adapters_is_what_vllms_classes_say(environment_of: Callable[[str], Path]) -> None:
    known = vllm.WITHOUT | vllm.INPUTS | vllm.OUTPUTS | vllm.STACKED
    others = {"Qwen2ForCausalLM", "MistralForCausalLM", "Gemma2ForCausalLM", "OlmoeForCausalLM"}
    found = json.loads(run(environment_of("vllm"), "scenarios_serveable_vllm", "tables", *sorted(known | others)))
    assert len(found) > 80
    for name, (takes, embeddings, is_stacked) in found.items():
        assert takes == (name not in vllm.WITHOUT), name
        assert bool({"embed_tokens", "wte"} & set(embeddings)) == (name in vllm.INPUTS), name
        assert ("lm_head" in embeddings) == (name in vllm.OUTPUTS), name
        assert is_stacked == (name in vllm.STACKED), name
