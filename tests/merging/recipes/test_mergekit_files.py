"""Recipe files, merged by us and by mergekit itself: the same tensors within one rounding."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml as pyyaml
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from adapterhub.merging import patches
from adapterhub.merging.checkpoint import LocalFolder
from adapterhub.merging.engine import run
from adapterhub.merging.plan import plan
from adapterhub.merging.recipes.canonical import Input
from adapterhub.merging.recipes.yaml import read
from tests.merging import tiny
from tests.merging.exactness.compare import DTYPES, record, roundings, trained
from tests.merging.whole_mergekit import MergeConfiguration, MergeOptions, run_merge

LAYERS = 4


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Llamas of four layers, base and three that differ; the same in bfloat16; GPT-2s and BERTs; LoRAs of the base."""
    root = tmp_path_factory.mktemp("files")
    generator = torch.Generator().manual_seed(3)
    for name in ("base", "a", "b", "c"):
        model: Any = tiny.llama(layers=LAYERS)
        others: dict[str, Any] = {"gpt": tiny.gpt2(), "bert": tiny.bert_classifier()}
        every = [model, *others.values()]
        for parameter in [] if name == "base" else [one for each in every for one in each.parameters()]:
            change = 0.05 * torch.randn(parameter.shape, generator=generator)
            parameter.data += change * (torch.rand(parameter.shape, generator=generator) < 0.6)
        tiny.saved(model, root / name)
        for kind, other in others.items():
            tiny.saved(other, root / f"{kind}-{name}")
        tiny.saved(model.to(torch.bfloat16), root / f"half-{name}")
    for seed, name in enumerate(["lora", "lora-2"]):
        config = LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
        trained(tiny.llama(layers=LAYERS), config, root / name, seed=seed)
    return {folder.name: folder for folder in root.iterdir()}


@pytest.fixture(scope="module")
def t5s(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """T5s with three layers in the encoder and two in the decoder: base, a and b."""
    root = tmp_path_factory.mktemp("t5s")
    for seed, name in enumerate(["base", "a", "b"]):
        torch.manual_seed(seed)
        sizes: dict[str, Any] = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_heads": 4, "tie_word_embeddings": False}
        config = T5Config(
            vocab_size=32,
            num_layers=3,
            num_decoder_layers=2,
            feed_forward_proj="gated-gelu",
            **sizes,
        )
        tiny.saved(T5ForConditionalGeneration(config), root / name)
    return {folder.name: folder for folder in root.iterdir()}


def ours(text: str, folders: Mapping[str, Path], out: Path) -> dict[str, torch.Tensor]:
    recipe = read(text)
    inputs = {}
    for ref in recipe.references():
        folder = LocalFolder(folders[ref.name])
        inputs[ref] = Input(f"{ref.name}@{'0' * 40}", folder, kind=patches.inspect(folder)[0].kind)
    run(plan(recipe, inputs, memory_bytes=1 << 30), out)
    return load_file(out / "model.safetensors")


def located(value: Any, folders: Mapping[str, Path]) -> Any:
    """The file with folders in place of names."""
    if isinstance(value, dict):
        return {
            key: _folder(one, folders) if key in ("model", "base_model") else located(one, folders)
            for key, one in value.items()
        }
    return [located(one, folders) for one in value] if isinstance(value, list) else value


def _folder(name: str, folders: Mapping[str, Path]) -> str:
    return "+".join(str(folders[part]) for part in name.split("+"))


def theirs(text: str, folders: Mapping[str, Path], out: Path) -> dict[str, torch.Tensor]:
    config = MergeConfiguration.model_validate(located(pyyaml.safe_load(text), folders))
    options = MergeOptions(
        lora_merge_cache=str(out / "loras"), copy_tokenizer=False, write_model_card=False, quiet=True
    )
    run_merge(config, str(out), options)
    return {name: one for file in out.glob("*.safetensors") for name, one in load_file(file).items()}


FILES = {
    "linear by depth and module": """
        merge_method: linear
        models:
          - model: a
            parameters:
              weight: [0.2, 0.5, 0.9]
          - model: b
            parameters:
              weight:
                - filter: self_attn
                  value: [0.8, 0.1]
                - filter: mlp
                  value: 0.4
                - value: 0.6
          - model: c
        parameters:
          weight: 0.3
    """,
    "linear without division": """
        merge_method: linear
        models: [{model: a, parameters: {weight: 0.5}}, {model: b, parameters: {weight: 0.8}}]
        parameters: {normalize: false}
    """,
    "linear with its base": """
        merge_method: linear
        base_model: base
        models: [{model: a, parameters: {weight: 0.5}}]
        parameters: {weight: [1, 0]}
    """,
    "task arithmetic": """
        merge_method: task_arithmetic
        base_model: base
        models:
          - model: base
          - {model: a, parameters: {weight: [0, 0.3, 0.7, 1]}}
          - {model: b, parameters: {weight: -0.5}}
        parameters: {lambda: [1, 0.5], int8_mask: true, rescale: true}
    """,
    "ties by filters": """
        merge_method: ties
        base_model: base
        models:
          - model: a
            parameters:
              weight: {filter: mlp, value: [0.9, 0.2]}
          - {model: b, parameters: {weight: 0.7}}
          - {model: c, parameters: {weight: [0.1, 0.4]}}
        parameters:
          weight: 0.5
          density: [1, 0.7, 0.1]
          lambda: 0.8
          normalize:
            - {filter: self_attn, value: false}
            - {value: true}
    """,
    "ties with densities of their own": """
        merge_method: ties
        base_model: base
        models:
          - {model: a, parameters: {weight: 0.6, density: 0.5}}
          - {model: b, parameters: {weight: [0.2, 0.9], density: [0.9, 0.3]}}
          - {model: c, parameters: {weight: 0.4}}
        parameters: {normalize: false, lambda: 1.2}
    """,
    "breadcrumbs with densities of their own": """
        merge_method: breadcrumbs
        base_model: base
        models:
          - {model: a, parameters: {weight: 0.6, density: 0.5, gamma: 0.1}}
          - {model: b, parameters: {weight: 0.9, density: 0.8}}
        parameters: {normalize: true}
    """,
    "breadcrumbs ties with densities of their own": """
        merge_method: breadcrumbs_ties
        base_model: base
        models:
          - {model: a, parameters: {weight: 0.6, density: 0.5, gamma: 0.1}}
          - {model: b, parameters: {weight: 0.9, density: 0.8}}
    """,
    "slerp as it is usually written": """
        merge_method: slerp
        base_model: base
        models: [{model: base}, {model: a}]
        parameters:
          t:
            - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
            - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
            - {value: 0.5}
    """,
    "nuslerp of weights": """
        merge_method: nuslerp
        models: [{model: a, parameters: {weight: [0.1, 0.9]}}, {model: b, parameters: {weight: 0.4}}]
    """,
    "nuslerp of deltas, by rows": """
        merge_method: nuslerp
        base_model: base
        models: [{model: a, parameters: {weight: 0.3}}, {model: b, parameters: {weight: 0.4}}]
        parameters: {nuslerp_flatten: false, nuslerp_row_wise: [true, false]}
    """,
    "multislerp": """
        merge_method: multislerp
        models:
          - {model: a, parameters: {weight: 0.3}}
          - {model: b, parameters: {weight: [0.4, 1]}}
          - {model: c, parameters: {weight: 1.0e-1}}
    """,
    "karcher with its base": """
        merge_method: karcher
        base_model: base
        models: [{model: a}, {model: b}]
        parameters: {max_iter: 200, tol: 1e-9}
    """,
    "model stock": """
        merge_method: model_stock
        base_model: base
        models: [{model: a}, {model: b}, {model: base}]
        parameters: {filter_wise: true}
    """,
    "ties of one model": """
        {merge_method: ties, base_model: base, models: [{model: a}], parameters: {weight: 1, lambda: 0.7}}
    """,
    "sce": """
        merge_method: sce
        base_model: base
        models: [{model: a}, {model: b}]
        parameters: {select_topk: [0.2, 0.8]}
    """,
    "nearswap": """
        merge_method: nearswap
        base_model: base
        models: [{model: a}]
        parameters: {t: [0.01, 0.05]}
    """,
    "passthrough": """
        merge_method: passthrough
        models: [{model: a, parameters: {scale: [{filter: o_proj, value: 0.5}, {value: 1}]}}]
    """,
    "arcee fusion": "{merge_method: arcee_fusion, base_model: base, models: [{model: a}]}",
    "ram": "{merge_method: ram, base_model: base, models: [{model: a}, {model: b}]}",
    "a model with a lora": """
        merge_method: linear
        models: [{model: base+lora, parameters: {weight: [1, 0.2]}}, {model: a+lora-2, parameters: {weight: 0.5}}]
    """,
    "a base with a lora": """
        merge_method: ties
        base_model: base+lora
        models:
          - {model: base+lora-2, parameters: {weight: 0.7}}
          - {model: a, parameters: {weight: 0.5}}
          - {model: b+lora, parameters: {weight: 0.5}}
        parameters: {density: 0.5}
    """,
    "an arc from a base with a lora": """
        merge_method: slerp
        base_model: base+lora
        models: [{model: a}]
        parameters: {t: [0.2, 0.6]}
    """,
}


SLICES = {
    "layers of two models on top of one another": """
        merge_method: passthrough
        slices:
          - sources: [{model: a, layer_range: [0, 3]}]
          - sources: [{model: b, layer_range: [1, 4]}]
    """,
    "the same layers many times, scaled": """
        merge_method: passthrough
        slices:
          - sources: [{model: a, layer_range: [0, 2]}]
          - sources:
              - model: a
                layer_range: [1, 2]
                parameters:
                  scale: [{filter: o_proj, value: 0.0}, {filter: down_proj, value: 0.5}, {value: 1.0}]
          - sources: [{model: a, layer_range: [1, 4]}]
    """,
    "gradients over each slice": """
        merge_method: linear
        slices:
          - sources:
              - {model: a, layer_range: [0, 3], parameters: {weight: [0.2, 0.8]}}
              - {model: b, layer_range: [1, 4], parameters: {weight: 0.5}}
          - sources:
              - {model: c, layer_range: [3, 4], parameters: {weight: [0.1, 0.9]}}
              - {model: a, layer_range: [0, 1], parameters: {weight: {filter: mlp, value: 0.3}}}
            parameters: {weight: [0.4, 0.6]}
    """,
    "a base of its own in each slice": """
        merge_method: ties
        base_model: base
        slices:
          - sources:
              - {model: base, layer_range: [0, 2]}
              - {model: a, layer_range: [1, 3], parameters: {weight: [0.4, 1]}}
              - {model: b, layer_range: [0, 2], parameters: {weight: 0.6, density: 0.5}}
          - sources:
              - {model: a, layer_range: [2, 4]}
              - {model: c, layer_range: [2, 4], parameters: {weight: 0.5}}
            base_model: a
            parameters: {lambda: [0.5, 1.5]}
    """,
    "arcs slice by slice": """
        merge_method: slerp
        base_model: base
        slices:
          - sources: [{model: base, layer_range: [0, 2]}, {model: a, layer_range: [2, 4]}]
          - sources: [{model: base, layer_range: [2, 4]}, {model: b, layer_range: [2, 4]}]
            parameters: {t: [0.9, 0.3]}
        parameters: {t: [{filter: mlp, value: [0, 1]}, {value: 0.5}]}
    """,
    "models with loras": """
        merge_method: passthrough
        slices:
          - sources: [{model: base+lora, layer_range: [0, 2]}]
          - sources: [{model: a+lora-2, layer_range: [1, 4]}]
    """,
    "the first layers of all": """
        merge_method: task_arithmetic
        base_model: base
        slices:
          - sources:
              - {model: base, layer_range: [0, 3]}
              - {model: a, layer_range: [0, 3], parameters: {weight: [0.2, 0.8]}}
    """,
}


@pytest.mark.parametrize("name", SLICES)
@pytest.mark.usefixtures("stable")
def test_slices_are_stacked_as_mergekit_does(name: str, folders: Mapping[str, Path], tmp_path: Path) -> None:
    found, expected = (make(SLICES[name], folders, tmp_path / make.__name__) for make in (ours, theirs))
    error = roundings(found, expected, torch.float32)
    record(name, "llama", "float32", "mergekit 0.1.5 run_merge", error, "file")
    assert error <= 1.0
    configs = [json.loads((tmp_path / one / "config.json").read_text()) for one in ("ours", "theirs")]
    assert configs[0]["num_hidden_layers"] == configs[1]["num_hidden_layers"]
    assert LlamaForCausalLM.from_pretrained(tmp_path / "ours").num_parameters() == sum(
        one.numel() for one in found.values()
    )


def test_slices_of_gpt2s_are_stacked_as_mergekit_does(folders: Mapping[str, Path], tmp_path: Path) -> None:
    gpts = {one: folders[f"gpt-{one}"] for one in ("a", "b")}
    text = """
        merge_method: passthrough
        slices:
          - sources: [{model: a, layer_range: [0, 2]}]
          - sources: [{model: b, layer_range: [0, 1]}]
    """
    found, expected = (make(text, gpts, tmp_path / make.__name__) for make in (ours, theirs))
    expected = {key if key in found else f"transformer.{key}": value for key, value in expected.items()}
    assert roundings(found, {key: expected[key] for key in found}, torch.float32) == 0.0
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["n_layer"] == 3


MODULES = {
    "an encoder and a decoder": """
        merge_method: ties
        base_model: base
        modules:
          encoder:
            models:
              - {model: a, parameters: {weight: [0.2, 0.9]}}
              - {model: b, parameters: {weight: 0.5}}
            parameters: {density: 0.5}
          decoder:
            models:
              - {model: b, parameters: {weight: 0.7}}
          shared:
            models: [{model: a, parameters: {weight: 1}}]
        parameters: {lambda: 0.9}
    """,
    "modules of different models": """
        merge_method: linear
        modules:
          encoder: {models: [{model: a, parameters: {weight: 1}}]}
          decoder: {models: [{model: b, parameters: {weight: [1, 0]}}, {model: a, parameters: {weight: 0.5}}]}
          shared: {models: [{model: b, parameters: {weight: 1}}]}
    """,
    "all modules alike": """
        merge_method: slerp
        base_model: base
        models: [{model: a}]
        parameters: {t: [{filter: encoder, value: [0.1, 0.5]}, {value: [0.2, 0.8]}]}
    """,
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.usefixtures("stable")
def test_modules_are_merged_as_mergekit_does(name: str, t5s: Mapping[str, Path], tmp_path: Path) -> None:
    found, expected = (make(MODULES[name], t5s, tmp_path / make.__name__) for make in (ours, theirs))
    error = roundings(found, expected, torch.float32)
    record(name, "t5", "float32", "mergekit 0.1.5 run_merge", error, "file")
    assert error <= 1.0


@pytest.mark.parametrize("name", FILES)
@pytest.mark.usefixtures("stable")
def test_a_file_means_what_mergekit_makes_of_it(name: str, folders: Mapping[str, Path], tmp_path: Path) -> None:
    found, expected = (make(FILES[name], folders, tmp_path / make.__name__) for make in (ours, theirs))
    error = roundings(found, expected, torch.float32)
    record(name, "llama", "float32", "mergekit 0.1.5 run_merge", error, "file")
    assert error <= 1.0


@pytest.mark.parametrize("kind", ["gpt", "bert"])
@pytest.mark.parametrize("name", ["linear by depth and module", "ties by filters", "slerp as it is usually written"])
@pytest.mark.usefixtures("stable")
def test_a_file_of_gpt2s_and_berts_does_too(name: str, kind: str, folders: Mapping[str, Path], tmp_path: Path) -> None:
    gpts = {one: folders[f"{kind}-{one}"] for one in ("base", "a", "b", "c")}
    parts = {"gpt": ("attn", "mlp"), "bert": ("attention", "intermediate")}[kind]
    text = FILES[name].replace("self_attn", parts[0]).replace("mlp", parts[1])
    found, expected = (make(text, gpts, tmp_path / make.__name__) for make in (ours, theirs))
    expected = {key if key in found else f"transformer.{key}": value for key, value in expected.items()}
    if kind == "bert":
        # two entries, whose sums nearly cancel: what float32 leaves of them is no share of the largest
        torch.testing.assert_close(found.pop("classifier.bias"), expected["classifier.bias"], rtol=1e-5, atol=1e-7)
    error = roundings(found, {key: expected[key] for key in found}, torch.float32)
    record(name, {"gpt": "gpt2"}.get(kind, kind), "float32", "mergekit 0.1.5 run_merge", error, "file")
    assert error <= 1.0


@pytest.mark.parametrize(("dtype", "out"), [("float32", "bfloat16"), ("float32", None), (None, "float16")])
@pytest.mark.usefixtures("stable")
def test_dtype_is_of_the_arithmetic_and_out_dtype_of_the_result(
    dtype: str | None, out: str | None, folders: Mapping[str, Path], tmp_path: Path
) -> None:
    # without a dtype mergekit computes in the inputs' own, and rounds at each step
    halves = {name: folders[name if dtype is None else f"half-{name}"] for name in ("base", "a", "b", "c")}
    lines = [f"dtype: {dtype}"] * (dtype is not None) + [f"out_dtype: {out}"] * (out is not None)
    text = pyyaml.safe_dump(pyyaml.safe_load(FILES["ties by filters"])) + "\n".join(lines)
    found, expected = (make(text, halves, tmp_path / make.__name__) for make in (ours, theirs))
    kind = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(out or "", torch.float32)
    assert {one.dtype for one in found.values()} == {one.dtype for one in expected.values()} == {kind}
    assert roundings(found, expected, kind) <= (1.0 if kind in DTYPES.values() else 2.0)


def test_dtype_rounds_models_as_they_are_read(folders: Mapping[str, Path], tmp_path: Path) -> None:
    text = "{merge_method: task_arithmetic, base_model: base, dtype: bfloat16, out_dtype: float32, models: [{model: a, "
    found = ours(text + "parameters: {weight: 0.5}}]}", folders, tmp_path / "out")
    base, a = (load_file(folders[name] / "model.safetensors") for name in ("base", "a"))
    for name, tensor in found.items():
        wide = [one[name].to(torch.bfloat16).double() for one in (base, a)]
        assert roundings({name: tensor}, {name: wide[0] + 0.5 * (wide[1] - wide[0])}, torch.float32) <= 1.0
