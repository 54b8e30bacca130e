"""LoRA files as the real peft writes them, read onto the real checkpoints of transformers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from adapterhub.merging import patches
from adapterhub.merging.checkpoint import Checkpoint, LocalFolder, TensorHandle
from adapterhub.merging.engine import write_export
from adapterhub.merging.errors import InvalidPatch, NotFoldable, NotRepresentable, ShapeMismatch, UnknownSite
from adapterhub.merging.patch import Patch, SiteTerm
from adapterhub.merging.sites import live_name
from tests.merging import tiny


def tensor(handle: TensorHandle) -> torch.Tensor:
    dtype = {"F32": torch.float32, "BF16": torch.bfloat16}[handle.dtype]
    return torch.frombuffer(bytearray(handle.read()), dtype=dtype).reshape(handle.shape).float()


def opened(folder: Path) -> Checkpoint:
    return Checkpoint.open(LocalFolder(folder), name=folder.name)


def folded(base: Checkpoint, patch: Patch) -> dict[str, torch.Tensor]:
    """The touched parameters of the base with the patch's terms applied, by the terms' definitions."""
    result: dict[str, torch.Tensor] = {}
    for term in sorted(patch.terms, key=lambda term: term.term != "replace"):
        if term.term == "replace":
            result[term.site] = tensor(term.fields["value"])
            continue
        stored = term.options.get("tied_source", term.site)
        W = result.get(term.site, tensor(base.tensors[stored]) if stored in base.tensors else torch.zeros(()))
        delta = _delta(term)
        result[term.site] = W + (delta.T if term.options.get("transpose") else delta)
    return result


def _delta(term: SiteTerm) -> torch.Tensor:
    if term.term == "dense":
        return term.scale * tensor(term.fields["delta"])
    A, B = tensor(term.fields["A"]), tensor(term.fields["B"])
    return term.scale * (B.flatten(1) @ A.flatten(1)).reshape(B.shape[0], *A.shape[1:])


def assert_equals_peft(base: Checkpoint, patch: Patch, adapted: PeftModel) -> None:
    expected = dict(adapted.merge_and_unload(safe_merge=True).named_parameters())
    found = folded(base, patch)
    assert found
    for site, value in found.items():
        torch.testing.assert_close(value, expected[site].data, rtol=1e-5, atol=1e-6)
    untouched = set(expected) & set(base.tensors) - set(found)
    for site in untouched:
        assert torch.equal(expected[site].data, tensor(base.tensors[site])), site


CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ["q_proj", "v_proj"]},
    "rank-stabilised": {"target_modules": ["q_proj"], "use_rslora": True},
    "ranks and alphas by module": {
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 3},
        "alpha_pattern": {"model.layers.0.self_attn.v_proj": 32, "^model.layers.1.*v_proj": 5},
    },
    "all linear layers": {"target_modules": "all-linear"},
    "embedding": {"target_modules": ["embed_tokens", "k_proj"]},
    "output embedding": {"target_modules": ["lm_head"]},
    "saved whole": {"target_modules": ["q_proj"], "modules_to_save": ["norm", "lm_head"]},
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_llama_adapter_folds_as_peft_folds_it(case: str, llama_folder: Path, tmp_path: Path) -> None:
    adapted = tiny.adapter(tiny.llama(), tmp_path, **CONFIGS[case])
    base = opened(llama_folder)
    patch = patches.read(LocalFolder(tmp_path), base=base)
    assert patch.facts.problems == ()
    assert_equals_peft(base, patch, adapted)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
@pytest.mark.filterwarnings("ignore:Careful, disabling adapter layers")
def test_trained_biases_replace_the_base_s(bias: str, bert_folder: Path, tmp_path: Path) -> None:
    adapted = tiny.adapter(tiny.bert(), tmp_path, target_modules=["query"], bias=bias)
    base = opened(bert_folder)
    patch = patches.read(LocalFolder(tmp_path), base=base)
    assert {term.site.rpartition(".")[2] for term in patch.terms if term.term == "replace"} == {"bias"}
    assert_equals_peft(base, patch, adapted)


def test_convolutions_and_heads_of_an_image_model_fold_as_peft_folds_them(tmp_path: Path) -> None:
    base = opened(tiny.saved(tiny.vit(), tmp_path / "base"))
    targets = ["q_proj", "o_proj", "fc2", "projection"]
    adapted = tiny.adapter(tiny.vit(), tmp_path / "adapter", target_modules=targets, modules_to_save=["classifier"])
    patch = patches.read(LocalFolder(tmp_path / "adapter"), base=base)
    assert {term.options["layer"] for term in patch.terms if term.term == "lowrank"} == {"conv", "linear"}
    assert {term.site for term in patch.terms if term.term == "replace"} == {"classifier.weight", "classifier.bias"}
    expected = dict(adapted.merge_and_unload(safe_merge=True).named_parameters())
    for site, value in folded(base, patch).items():
        torch.testing.assert_close(value, expected[live_name(site, "vit")].data, rtol=1e-5, atol=1e-6)


def test_conv1d_deltas_are_transposed_even_where_weights_are_square(gpt2_folder: Path, tmp_path: Path) -> None:
    adapted = tiny.adapter(tiny.gpt2(), tmp_path, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "fan_in_fan_out": False}))
    base = opened(gpt2_folder)
    patch = patches.read(LocalFolder(tmp_path), base=base)
    assert {term.options["layer"] for term in patch.terms} == {"conv1d"}
    assert_equals_peft(base, patch, adapted)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize(("target", "option"), [("wte", "tied_output"), ("lm_head", "tied_source")])
def test_a_tied_embedding_comes_apart(target: str, option: str, gpt2_folder: Path, tmp_path: Path) -> None:
    adapted = tiny.adapter(tiny.gpt2(), tmp_path, target_modules=[target])
    base = opened(gpt2_folder)
    (term,) = patches.read(LocalFolder(tmp_path), base=base).terms
    assert "lm_head.weight" not in base.tensors
    assert term.site == {"wte": "transformer.wte.weight", "lm_head": "lm_head.weight"}[target]
    assert term.options[option] in ("lm_head.weight", "transformer.wte.weight")
    model: Any = adapted.base_model.model
    layer = model.transformer.wte if target == "wte" else model.lm_head
    expected = layer.base_layer.weight.data + layer.get_delta_weight("default")
    found = folded(base, Patch(patches.inspect(LocalFolder(tmp_path))[0], "", (term,)))
    torch.testing.assert_close(found[term.site], expected)


def test_a_task_model_s_prefix_is_taken_off_for_the_bare_model(tmp_path: Path) -> None:
    model: Any = tiny.bert_classifier()
    base = opened(tiny.saved(model.bert, tmp_path / "bare"))
    adapted = tiny.adapter(model, tmp_path / "adapter", target_modules=["query", "dense"], task_type="SEQ_CLS")
    patch = patches.read(LocalFolder(tmp_path / "adapter"), base=base)
    created = {term.site for term in patch.terms if term.options.get("create")}
    assert created == {"classifier.weight", "classifier.bias"}
    sites = {term.site for term in patch.terms} - created
    assert "encoder.layer.0.attention.self.query.weight" in sites
    assert sites <= set(base.tensors)
    merged = dict(adapted.merge_and_unload().named_parameters())
    found = folded(base, patch)
    for site in sites:
        torch.testing.assert_close(found[site], merged[f"bert.{site}"].data, rtol=1e-5, atol=1e-6)


def test_a_bare_model_s_names_get_the_task_model_s_prefix(tmp_path: Path) -> None:
    tiny.adapter(tiny.bert(), tmp_path / "adapter", target_modules=["query"])
    base = opened(tiny.saved(tiny.bert_for_masked_lm(), tmp_path / "base"))
    patch = patches.read(LocalFolder(tmp_path / "adapter"), base=base)
    assert {term.site for term in patch.terms} == {
        f"bert.encoder.layer.{index}.attention.self.query.weight" for index in (0, 1)
    }


@pytest.mark.filterwarnings("ignore:Adapter 'default'. 2 LoRA tensor")
def test_lora_biases_are_dense_terms_on_the_bias(bert_folder: Path, tmp_path: Path) -> None:
    adapted = tiny.adapter(tiny.bert(), tmp_path, target_modules=["query"], lora_bias=True)
    base = opened(bert_folder)
    patch = patches.read(LocalFolder(tmp_path), base=base)
    assert {term.term for term in patch.terms if term.site.endswith(".bias")} == {"dense"}
    assert_equals_peft(base, patch, adapted)


def test_facts_say_what_is_inside(tmp_path: Path) -> None:
    tiny.adapter(tiny.llama(), tmp_path / "sub", target_modules=["q_proj", "down_proj"], rank_pattern={"q_proj": 2})
    (facts,) = patches.inspect(LocalFolder(tmp_path))
    assert (facts.kind, facts.path, facts.rank_min, facts.rank_max) == ("lora", "sub", 2, 4)
    assert facts.targets == ("down_proj", "q_proj")
    assert facts.layers == {"0": 2, "1": 2}
    assert facts.base.name == "tiny/base"
    assert facts.parameter_count == 2 * (2 * (16 + 16) + 4 * (16 + 24))
    assert facts.dtypes == {"F32": facts.parameter_count}
    assert facts.files == ("sub/adapter_config.json", "sub/adapter_model.safetensors")
    assert facts.problems == ()


def test_the_digest_does_not_depend_on_the_order_of_a_set(tmp_path: Path) -> None:
    tiny.adapter(tiny.llama(), tmp_path, target_modules=["q_proj", "v_proj"])
    before = patches.read(LocalFolder(tmp_path)).digest
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config["target_modules"].reverse()
    config["base_model_name_or_path"] = "other/name"
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert patches.read(LocalFolder(tmp_path)).digest == before
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 9}))
    assert patches.read(LocalFolder(tmp_path)).digest != before


def edited(folder: Path, **changes: Any) -> LocalFolder:
    """A small adapter on q_proj whose configuration was changed afterwards."""
    tiny.adapter(tiny.llama(), folder, target_modules=["q_proj"])
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    return LocalFolder(folder)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"init_lora_weights": "corda"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "loftq"}, "quantised base"),
        ({"init_lora_weights": "pissa", "use_dora": True}, "use_dora"),
        ({"use_qalora": True, "use_dora": True}, "peft has no adapter of both"),
    ],
)
def test_what_is_no_plain_lora_is_recognised_and_not_read(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    folder = edited(tmp_path, **changes)
    (facts,) = patches.inspect(folder)
    assert facts.kind == "lora"
    assert says in facts.problems[0]
    with pytest.raises(NotFoldable, match=says):
        patches.read(folder)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"use_dora": True}, "no lora_magnitude_vector"),
        ({"kasa_config": {"beta": 0.1}}, "no lora_diag"),
        ({"trainable_token_indices": [1]}, "holds no trainable_tokens_delta"),
        ({"r": 0}, "r is 0"),
        ({"r": -1}, "r is -1"),
        ({"r": 10**9}, "r is 1000000000"),
        ({"r": 8}, r"rank is 4, adapter_config\.json says 8"),
        ({"use_qalora": True, "qalora_group_size": 0}, "qalora_group_size is 0"),
        ({"use_bdlora": [1]}, r"use_bdlora is \[1\]"),
        ({"use_bdlora": {"nblocks": -1}}, "nblocks is -1"),
        ({"use_bdlora": {"target_modules_bd_a": 3}}, "target_modules_bd_a is 3"),
        ({"use_bdlora": {"target_modules_bd_a": ["q_proj"], "nblocks": 3}}, "a matrix of 3 blocks is expected"),
        ({"lora_alpha": 0}, "lora_alpha is 0"),
        ({"lora_alpha": "x"}, "lora_alpha is 'x'"),
        ({"rank_pattern": [1]}, "rank_pattern is a list"),
        ({"rank_pattern": {"(a+)+b": 3}}, "too complicated"),
        ({"rank_pattern": {"[": 3}}, "no regular expression"),
        ({"alpha_pattern": {"q_proj": -1}}, "alpha_pattern"),
        ({"modules_to_save": "norm"}, "modules_to_save"),
    ],
)
def test_a_configuration_that_contradicts_itself_is_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    folder = edited(tmp_path, **changes)
    assert len(patches.inspect(folder)[0].problems) >= 1
    with pytest.raises(InvalidPatch, match=says):
        patches.read(folder)


@pytest.mark.parametrize(
    "name", ["/home/u/model", "./out", "../../x", "http://169.254.1.1/x", "C:\\models\\x", "a/b/c"]
)
def test_a_base_that_is_no_repository_is_a_problem_but_readable(name: str, tmp_path: Path) -> None:
    folder = edited(tmp_path, base_model_name_or_path=name)
    (facts,) = patches.inspect(folder)
    assert "no repository; name the base as namespace/name" in facts.problems[0]
    assert patches.read(folder).terms


KEY = "base_model.model.model.layers.0.self_attn.q_proj."


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({KEY + "lora_A.weight": None}, "has lora_B and no lora_A"),
        ({KEY + "lora_B.weight": None}, "has lora_A and no lora_B"),
        ({KEY + "lora_A.weight": torch.zeros(0)}, "sharded run"),
        ({KEY + "lora_A.weight": torch.zeros(3, 16)}, "ranks differ"),
        ({KEY + "lora_A.weight": torch.zeros(4, 16, dtype=torch.int8)}, "dtype I8"),
        ({KEY + "other": torch.zeros(4)}, "neither part of a LORA adapter nor in modules_to_save"),
        ({"stray": torch.zeros(4)}, "does not begin with"),
    ],
)
def test_tensors_that_contradict_each_other_are_refused(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    folder = edited(tmp_path)
    tensors: dict[str, Any] = {**load_file(tmp_path / "adapter_model.safetensors"), **change}
    kept = {name: value for name, value in tensors.items() if value is not None}
    save_file(kept, tmp_path / "adapter_model.safetensors")
    assert says in patches.inspect(folder)[0].problems[0]
    with pytest.raises(InvalidPatch, match=says):
        patches.read(folder)


def test_pickled_weights_are_named_and_never_opened(tmp_path: Path) -> None:
    folder = edited(tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    (facts,) = patches.inspect(folder)
    assert "adapter_model.bin is a pickle" in facts.problems[0]


def test_an_adapter_of_another_shape_is_refused_by_site(gpt2_folder: Path, tmp_path: Path) -> None:
    folder = edited(tmp_path)
    with pytest.raises(UnknownSite, match="q_proj"):
        patches.read(folder, base=opened(gpt2_folder))
    weights = {"model.layers.0.self_attn.q_proj.weight": torch.zeros(20, 20)}
    weights["model.layers.1.self_attn.q_proj.weight"] = torch.zeros(20, 20)
    (tmp_path / "wide").mkdir()
    save_file(weights, tmp_path / "wide" / "model.safetensors")
    with pytest.raises(ShapeMismatch, match=r"delta is \(16, 16\), base 'wide' has \(20, 20\)"):
        patches.read(folder, base=opened(tmp_path / "wide"))


def test_a_sum_of_adapters_is_one_that_peft_loads(llama_folder: Path, tmp_path: Path) -> None:
    base = opened(llama_folder)
    first = {"target_modules": ["q_proj", "embed_tokens"], "r": 2}
    second = {"target_modules": ["q_proj", "down_proj"], "r": 3, "use_rslora": True}
    deltas: dict[str, torch.Tensor] = {}
    addends = []
    for index, (weight, config) in enumerate([(0.7, first), (-0.5, second)]):
        tiny.adapter(tiny.llama(), tmp_path / str(index), seed=index, **config)
        patch = patches.read(LocalFolder(tmp_path / str(index)), base=base)
        addends.append((weight, patch))
        for term in patch.terms:
            delta = _delta(term).T if term.options["transpose"] else _delta(term)
            deltas[term.site] = deltas.get(term.site, torch.zeros(())) + weight * delta
    export = patches.kinds()["lora"].export
    assert export is not None
    write_export(export(addends, "tiny/base", base), tmp_path / "sum")
    loaded = PeftModel.from_pretrained(tiny.llama(), tmp_path / "sum").merge_and_unload(safe_merge=True)
    merged = dict(loaded.named_parameters())
    for site, delta in deltas.items():
        torch.testing.assert_close(merged[site].data, tensor(base.tensors[site]) + delta, rtol=1e-5, atol=1e-6)
    again = patches.read(LocalFolder(tmp_path / "sum"), base=base)
    assert (again.facts.rank_min, again.facts.rank_max) == (2, 5)
    assert again.facts.problems == ()


def test_only_low_rank_terms_become_a_lora(llama_folder: Path, tmp_path: Path) -> None:
    tiny.adapter(tiny.llama(), tmp_path, target_modules=["q_proj"], modules_to_save=["norm"])
    patch = patches.read(LocalFolder(tmp_path), base=opened(llama_folder))
    export = patches.kinds()["lora"].export
    assert export is not None
    with pytest.raises(NotRepresentable, match="norm"):
        export([(1.0, patch)], "tiny/base", None)


def test_half_precision_factors_are_read_as_they_lie(tmp_path: Path) -> None:
    tiny.adapter(tiny.llama(dtype=torch.bfloat16), tmp_path, target_modules=["q_proj"])
    patch = patches.read(LocalFolder(tmp_path))
    assert patch.facts.dtypes == {"BF16": patch.facts.parameter_count}
    assert np.isclose(patch.terms[0].scale, 2.0)
