"""peft's other tuners on every architecture that peft lets them adapt, against what peft merges in float64.

C3A computes its delta in float32 whatever the model's dtype, by FFTs; ours gathers it, so the difference is peft's.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterhub.merging import effects
from adapterhub.merging.errors import NotFoldable
from adapterhub.merging.terms import terms
from tests.merging.exactness.architectures import ARCHITECTURES, Architecture
from tests.merging.exactness.compare import (
    DTYPES,
    check_logits,
    check_weights,
    fold,
    prepared,
    read,
    record,
    record_refusal,
    roundings,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False but the target module is `Conv1D`"),
    pytest.mark.filterwarnings("ignore:Specified to not save vera_A and vera_B"),
    pytest.mark.filterwarnings("ignore:Specified to not save pvera_A and pvera_B"),
    pytest.mark.filterwarnings("ignore:Invalid `oft_block_size`"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled"),
    pytest.mark.filterwarnings("ignore:Detected that the base layer has no bias term"),
    pytest.mark.filterwarnings("ignore:Specified to not load p?vera_A and p?vera_B"),
    pytest.mark.filterwarnings("ignore:Careful, disabling adapter layers"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type .* encountered"),
    pytest.mark.filterwarnings("ignore:The symmetric initialization can NOT be performed"),
]

Make = Callable[..., Any]

DIVERSE = ("gpt2", "llama", "bert", "falcon", "whisper")
"""Where options of a tuner are tried: Conv1D, grouped attention, biases, fused projections, two stacks."""


def linear(kind: Make, **options: Any) -> Callable[[Architecture], Any]:
    """A configuration for an architecture's linear modules. A pattern's key "" stands for the first of them."""

    def configure(architecture: Architecture) -> Any:
        first = architecture.linear[0]
        named = {
            key: {first: value[""]} if isinstance(value, dict) and "" in value else value
            for key, value in options.items()
        }
        return kind(target_modules=list(architecture.linear), **named)

    return configure


def ia3(architecture: Architecture) -> Any:
    return peft.IA3Config(
        target_modules=[*architecture.linear, *architecture.feed_forward],
        feedforward_modules=list(architecture.feed_forward),
    )


TUNERS: Mapping[str, Callable[[Architecture], Any]] = {
    "ia3": ia3,
    "vera": linear(peft.VeraConfig, r=6),
    "pvera": linear(peft.PveraConfig, r=6),
    "loha": linear(peft.LoHaConfig, r=3, alpha=5),
    "lokr": linear(peft.LoKrConfig, r=1, alpha=5, decompose_both=True),
    "shira": linear(peft.ShiraConfig, r=2, random_seed=3),
    "supertuning": linear(peft.SupertuningConfig, sparsity=0.8),
    "c3a": linear(peft.C3AConfig, block_size=4),
    "miss": linear(peft.MissConfig, r=5),
    "oft": linear(peft.OFTConfig, oft_block_size=4),
    "hra": linear(peft.HRAConfig, r=4),
    "adalora": linear(peft.AdaLoraConfig, init_r=5, target_r=2, lora_alpha=7, total_step=10),
    "vblora": linear(peft.VBLoRAConfig, r=3, num_vectors=9, vector_length=4, topk=2),
    "delora": linear(peft.DeloraConfig, r=3, delora_lambda=7),
    "gralora": linear(peft.GraloraConfig, r=4, alpha=6, gralora_k=2),
}

VARIANTS: Mapping[str, Callable[[Architecture], Any]] = {
    "vera (drawn banks)": linear(peft.VeraConfig, r=6, save_projection=False, projection_prng_key=17),
    "pvera (drawn banks)": linear(peft.PveraConfig, r=6, save_projection=False),
    "loha (patterns)": linear(peft.LoHaConfig, r=3, alpha=5, rank_pattern={"": 2}, alpha_pattern={"": 9}),
    "lokr (whole)": linear(peft.LoKrConfig, r=8, alpha=5, rank_pattern={"": 9}, alpha_pattern={"": 4}),
    "supertuning (low rank)": linear(peft.SupertuningConfig, sparsity=0.9, r=2, lora_alpha=6.0),
    "c3a (patterns)": linear(peft.C3AConfig, block_size=4, block_size_pattern={"": 8}),
    "miss (mini)": linear(peft.MissConfig, r=4, mini_r=4, init_weights="mini"),
    "miss (bat)": linear(peft.MissConfig, r=4, init_weights="bat"),
    "oft (exact, shared)": linear(peft.OFTConfig, oft_block_size=4, use_cayley_neumann=False, block_share=True),
    "oft (constrained)": linear(peft.OFTConfig, oft_block_size=8, coft=True, eps=0.05, num_cayley_neumann_terms=3),
    "oft (two terms)": linear(peft.OFTConfig, r=2, oft_block_size=0, num_cayley_neumann_terms=2),
    "hra (Gram-Schmidt)": linear(peft.HRAConfig, r=4, apply_GS=True),
    "vblora (top weights)": linear(
        peft.VBLoRAConfig, r=3, num_vectors=9, vector_length=4, topk=3, save_only_topk_weights=True
    ),
    "delora (patterns)": linear(peft.DeloraConfig, r=3, rank_pattern={"": 2}, lambda_pattern={"": 3}),
    "gralora (hybrid)": linear(peft.GraloraConfig, r=4, alpha=6, gralora_k=4, hybrid_r=2),
}

NO_CONV1D = {"loha", "lokr", "shira", "supertuning", "c3a", "miss", "oft", "hra", "delora", "beft"}
"""Tuners that peft does not let adapt a Conv1D, so not GPT-2."""


def is_refused(tuner: str, architecture: Architecture) -> bool:
    return architecture.has_conv1d and tuner.partition(" (")[0] in NO_CONV1D


CASES = [(name, tuner) for tuner in TUNERS for name in ARCHITECTURES] + [
    (name, tuner) for tuner in VARIANTS for name in DIVERSE
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "tuner"), [case for case in CASES if not is_refused(case[1], ARCHITECTURES[case[0]])])
def test_folds_as_peft_merges(name: str, tuner: str, dtype: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES[name]
    config = (TUNERS | VARIANTS)[tuner](architecture)  # type: ignore[operator]
    base, patch, adapted = prepared(architecture, dtype, config, tmp_path)
    check_weights(tuner, architecture, dtype, base, patch, adapted, tmp_path)


@pytest.mark.parametrize("tuner", sorted(NO_CONV1D))
def test_peft_itself_refuses_conv1d(tuner: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES["gpt2"]
    config = (TUNERS | {"beft": linear(peft.BeftConfig)})[tuner](architecture)  # type: ignore[operator]
    with pytest.raises((TypeError, ValueError), match=r"Conv1D") as refusal:
        prepared(architecture, "float32", config, tmp_path)
    record_refusal(tuner, "gpt2", f"peft refuses: {str(refusal.value).split('.')[0]}")


# ---- biases, norms, rows ---------------------------------------------------------------------------------------------


def with_bias(architecture: Architecture) -> list[str]:
    """The linear modules whose every instance has a bias."""
    named = [
        (path, module)
        for path, module in architecture.make().named_modules()
        if isinstance(module, torch.nn.Linear) and path.endswith(tuple(architecture.linear))
    ]
    return [path for path, module in named if module.bias is not None]


BIASED = [name for name in ARCHITECTURES if with_bias(ARCHITECTURES[name])]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BIASED)
def test_beft_adds_to_biases(name: str, dtype: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES[name]
    config = peft.BeftConfig(target_modules=with_bias(architecture))
    base, patch, adapted = prepared(architecture, dtype, config, tmp_path)
    check_weights("beft", architecture, dtype, base, patch, adapted, tmp_path)


@pytest.mark.parametrize(
    "name", [name for name in ARCHITECTURES if name not in BIASED and not ARCHITECTURES[name].has_conv1d]
)
def test_beft_is_refused_where_there_is_no_bias(name: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES[name]
    config = peft.BeftConfig(target_modules=list(architecture.linear))
    base, patch, adapted = prepared(architecture, "float32", config, tmp_path)
    with pytest.raises(ValueError, match="no bias") as refusal:
        adapted.merge_and_unload()
    record_refusal("beft", name, f"peft refuses: {str(refusal.value).split(',')[0]}")
    with pytest.raises(NotFoldable, match=r"has no bias that beft_bias could be added to"):
        read(patch, base)


def norms(architecture: Architecture) -> list[str]:
    """Paths of all modules that normalise and have a weight."""
    named = architecture.make().named_modules()
    return [path for path, one in named if "Norm" in type(one).__name__ and getattr(one, "weight", None) is not None]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_norms_are_replaced(name: str, dtype: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES[name]
    config = peft.LNTuningConfig(target_modules=norms(architecture))
    base, patch, adapted = prepared(architecture, dtype, config, tmp_path)
    check_weights("ln_tuning", architecture, dtype, base, patch, adapted, tmp_path)


WITHOUT_TOKENS = {"vit", "wav2vec2", "w2v-bert", "ast"}
WITH_TOKENS = [name for name in ARCHITECTURES if name not in WITHOUT_TOKENS]


def embedding(architecture: Architecture) -> str:
    """The path of the input embedding, which in a speech model is the decoder's."""
    model: Any = architecture.make()
    paths: list[str] = [path for path, one in model.named_modules() if isinstance(one, torch.nn.Embedding)]
    return next(path for path in paths if "position" not in path)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", WITH_TOKENS)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_rows_of_an_embedding_are_replaced(name: str, dtype: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES[name]
    config = peft.TrainableTokensConfig(target_modules=[embedding(architecture)], token_indices=[9, 2, 5])
    base, patch, adapted = prepared(architecture, dtype, config, tmp_path)
    check_weights("trainable_tokens", architecture, dtype, base, patch, adapted, tmp_path)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", WITH_TOKENS)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_replaced_rows_give_the_live_adapters_logits(name: str, dtype: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES[name]
    config = peft.TrainableTokensConfig(target_modules=[embedding(architecture)], token_indices=[9, 2, 5])
    base, patch, adapted = prepared(architecture, dtype, config, tmp_path)
    check_logits("trainable_tokens", architecture, dtype, base, patch, adapted, tmp_path)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["gpt2", "llama", "llama-tied"])
@pytest.mark.parametrize("kind", ["trainable_tokens", "lora"])
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_rows_of_an_output_embedding_leave_the_input_as_it_is(name: str, kind: str, dtype: str, tmp_path: Path) -> None:
    """peft's own merge puts them into the shared tensor: the live adapter is the oracle."""
    architecture = ARCHITECTURES[name]
    rows: Any = peft.TrainableTokensConfig(target_modules=["lm_head"], token_indices=[9, 2, 5])
    if kind == "lora":
        rows = peft.LoraConfig(target_modules=[architecture.linear[0]], trainable_token_indices={"lm_head": [9, 2, 5]})
    base, patch, adapted = prepared(architecture, dtype, rows, tmp_path)
    check_logits(f"{kind} (output rows)", architecture, dtype, base, patch, adapted, tmp_path)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [one for one in ARCHITECTURES if ARCHITECTURES[one].embedding])
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_a_turned_embedding_gives_the_live_adapters_logits(name: str, dtype: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES[name]
    config = peft.OFTConfig(target_modules=[embedding(architecture)], oft_block_size=4)
    base, patch, adapted = prepared(architecture, dtype, config, tmp_path)
    check_logits("oft (embedding)", architecture, dtype, base, patch, adapted, tmp_path)


# ---- convolutions ----------------------------------------------------------------------------------------------------

VIT = replace(
    ARCHITECTURES["vit"],
    sizes={**ARCHITECTURES["vit"].sizes, "num_channels": 4},
    inputs=lambda: {"pixel_values": torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(7))},
)
"""Images of four channels, cut into pieces by a convolution (16, 4, 4, 4)."""

CONVOLUTIONS: dict[str, tuple[Architecture, str, Callable[[list[str]], Any]]] = {
    option.replace(")", f"{dims})"): (architecture, target, configure)
    for dims, architecture, target in (("conv2d", VIT, "projection"), ("conv1d", ARCHITECTURES["whisper"], "conv2"))
    for option, configure in {
        "loha ()": lambda targets: peft.LoHaConfig(target_modules=targets, r=3),
        "loha (cores, )": lambda targets: peft.LoHaConfig(target_modules=targets, r=3, use_effective_conv2d=True),
        "lokr ()": lambda targets: peft.LoKrConfig(target_modules=targets, r=1),
        "lokr (whole, )": lambda targets: peft.LoKrConfig(target_modules=targets, r=9),
        "lokr (cores, )": lambda targets: peft.LoKrConfig(target_modules=targets, r=1, use_effective_conv2d=True),
    }.items()
}
del CONVOLUTIONS["lokr (cores, conv1d)"]  # peft fails in torch.kron, in merging and in the forward pass: see below
CONVOLUTIONS |= {
    option: (VIT, "projection", configure)
    for option, configure in {
        "ia3 (conv2d)": lambda targets: peft.IA3Config(target_modules=targets, feedforward_modules=[]),
        "ia3 (inputs, conv2d)": lambda targets: peft.IA3Config(target_modules=targets, feedforward_modules=targets),
        "oft (conv2d)": lambda targets: peft.OFTConfig(target_modules=targets, oft_block_size=8),
        "hra (conv2d)": lambda targets: peft.HRAConfig(target_modules=targets, r=4),
        "adalora (conv2d)": lambda targets: peft.AdaLoraConfig(target_modules=targets, init_r=3, total_step=10),
    }.items()
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolutions_fold_as_peft_merges(case: str, dtype: str, tmp_path: Path) -> None:
    architecture, target, configure = CONVOLUTIONS[case]
    base, patch, adapted = prepared(architecture, dtype, configure([target]), tmp_path)
    assert {term.options["layer"] for term in read(patch, base).terms if "layer" in term.options} == {"conv"}
    check_weights(case, architecture, dtype, base, patch, adapted, tmp_path)


@pytest.mark.parametrize("case", [case for case in CONVOLUTIONS if case.startswith(("loha", "lokr", "adalora"))])
def test_a_convolution_of_low_rank_becomes_a_lora_that_peft_loads(case: str, tmp_path: Path) -> None:
    architecture, target, configure = CONVOLUTIONS[case]
    base, patch, adapted = prepared(architecture, "float32", configure([target]), tmp_path)
    check_lora(case, architecture, fold(base, patch, tmp_path / "lora", as_kind="lora"), adapted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_lokr_core_of_one_dimension_folds_by_its_formula(dtype: str, tmp_path: Path) -> None:
    """W + (alpha / r) · w1 ⊗ Σ t2[i, j]·w2_a[i]·w2_b[j], arXiv:2108.06098 prop. 3."""
    architecture = ARCHITECTURES["whisper"]
    config = peft.LoKrConfig(target_modules=["conv2"], r=1, alpha=5, use_effective_conv2d=True)
    base, patch, adapted = prepared(architecture, dtype, config, tmp_path)
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        adapted.merge_and_unload()
    expected = {name: value.double() for name, value in architecture.make(dtype=DTYPES[dtype]).state_dict().items()}
    stored = load_file(patch / "adapter_model.safetensors")
    module = "model.encoder.conv2"
    w1, a, b, t = (stored[f"base_model.model.{module}.lokr_{name}"].double() for name in ("w1", "w2_a", "w2_b", "t2"))
    w2 = torch.einsum("ijkl,ip,jq->pqkl", t, a, b).squeeze(3)
    product = torch.einsum("ab,cdk->acbdk", w1, w2).flatten(0, 1).flatten(1, 2)
    expected[f"{module}.weight"] += 5.0 * product
    merged = architecture.loader.from_pretrained(fold(base, patch, tmp_path / "out"))
    error = roundings(merged.state_dict(), expected, DTYPES[dtype])
    record("lokr (cores, conv1d)", architecture.name, dtype, "float64 formula (peft fails)", error)
    assert error <= 1.0


# ---- what comes along ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tuner", ["vera", "c3a", "miss", "oft", "hra", "adalora", "vblora", "delora", "gralora"])
def test_trained_biases_and_whole_modules_come_along(tuner: str, dtype: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES["bert"]
    config = TUNERS[tuner](architecture)
    config.bias, config.modules_to_save = "all", ["classifier"]
    base, patch, adapted = prepared(architecture, dtype, config, tmp_path)
    replaced = {term.site for term in read(patch, base).terms if term.term == "replace"}
    assert {"classifier.weight", "classifier.bias", "bert.encoder.layer.0.attention.self.query.bias"} <= replaced
    check_weights(f"{tuner} (biases, head)", architecture, dtype, base, patch, adapted, tmp_path)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_feed_forward_expression_decides_where_shapes_do_not(dtype: str, tmp_path: Path) -> None:
    config = peft.IA3Config(target_modules=["projection"], feedforward_modules=r".*\.projection")
    base, patch, adapted = prepared(VIT, dtype, config, tmp_path)
    assert {field for term in read(patch, base).terms for field in term.fields} == {"col"}
    check_weights("ia3 (expression)", VIT, dtype, base, patch, adapted, tmp_path)


def halved(name: str, value: torch.Tensor) -> torch.Tensor:
    """The tensor in bfloat16; logits by rank, because of equal ones torch.topk takes any."""
    if "vblora_logits" in name:
        value = value.argsort(-1).argsort(-1) / 8
    return value.bfloat16() if value.is_floating_point() else value


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tuner", [one for one in (*TUNERS, *VARIANTS) if one != "vblora (top weights)"])
def test_a_file_in_half_precision_folds_as_peft_loads_it(tuner: str, dtype: str, tmp_path: Path) -> None:
    """All but VB-LoRA's top weights, which peft cannot load in half precision: it scatters them into float32."""
    architecture = ARCHITECTURES["llama"]
    config = (TUNERS | VARIANTS)[tuner](architecture)  # type: ignore[operator]
    base, patch, _ = prepared(architecture, dtype, config, tmp_path)
    stored = load_file(patch / "adapter_model.safetensors")
    save_file({name: halved(name, value) for name, value in stored.items()}, patch / "adapter_model.safetensors")
    before: Any = architecture.make(dtype=DTYPES[dtype])
    loaded = peft.PeftModel.from_pretrained(before.float(), str(patch), autocast_adapter_dtype=False)
    kind = tuner.replace(")", ", bfloat16 file)") if ")" in tuner else f"{tuner} (bfloat16 file)"
    check_weights(kind, architecture, dtype, base, patch, loaded, tmp_path)


# ---- as factors ------------------------------------------------------------------------------------------------------

RANKS: Mapping[str, int] = {
    "vera": 6,
    "vera (drawn banks)": 6,
    "pvera": 6,
    "loha": 9,
    "lokr": 1,
    "miss": 5,
    "miss (mini)": 4,
    "adalora": 5,
    "vblora": 3,
    "vblora (top weights)": 3,
    "delora": 3,
    "gralora": 8,
    "gralora (hybrid)": 18,
}
"""The rank of the one LoRA that says the same, on the first module of an architecture."""


@pytest.mark.parametrize("tuner", RANKS)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_what_is_low_rank_has_exact_factors(name: str, tuner: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES[name]
    if is_refused(tuner, architecture):
        pytest.skip("peft does not let it adapt a Conv1D")
    config = (TUNERS | VARIANTS)[tuner](architecture)  # type: ignore[operator]
    base, patch, adapted = prepared(architecture, "float32", config, tmp_path)
    before = {key: value.double() for key, value in architecture.make().state_dict().items()}
    after = adapted.double().merge_and_unload().state_dict()
    ranks: dict[str, int] = {}
    deltas: dict[str, torch.Tensor] = {}
    for term in read(patch, base).terms:
        factors = terms()[term.term].factors
        assert factors is not None
        left, right = factors(effects.part(term), tuple(before[term.site].shape))
        deltas[term.site] = deltas.get(term.site, torch.zeros(())) + left.double() @ right.double()
        ranks[term.site] = ranks.get(term.site, 0) + left.shape[1]
    for site, delta in deltas.items():
        torch.testing.assert_close(delta, after[site] - before[site], rtol=1e-5, atol=1e-6)
    assert (
        max(ranks[site] for site in ranks if site.partition(".weight")[0].endswith(architecture.linear[0]))
        == RANKS[tuner]
    )


@pytest.mark.parametrize("tuner", RANKS)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_what_is_a_lora_in_other_clothes_becomes_one_that_peft_loads(name: str, tuner: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES[name]
    if is_refused(tuner, architecture):
        pytest.skip("peft does not let it adapt a Conv1D")
    config = (TUNERS | VARIANTS)[tuner](architecture)  # type: ignore[operator]
    base, patch, adapted = prepared(architecture, "float32", config, tmp_path)
    lora = fold(base, patch, tmp_path / "lora", as_kind="lora")
    check_lora(tuner, architecture, lora, adapted)


def check_lora(kind: str, architecture: Architecture, lora: Path, adapted: Any) -> None:
    """What peft makes of the plain LoRA in `lora` has the weights of the adapted model, which is used up."""
    loaded: Any = peft.PeftModel.from_pretrained(architecture.make(), str(lora))
    found = loaded.double().merge_and_unload().state_dict()
    error = roundings(found, adapted.double().merge_and_unload().state_dict(), torch.float32)
    record(kind, architecture.name, "float32", "peft merge_and_unload, float64", error, "as a LoRA")
    assert error <= 1.0


# ---- files of their own kind -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["miss", "miss (bat)"])
def test_a_file_of_the_old_name_folds_alike(mode: str, dtype: str, tmp_path: Path) -> None:
    """BONE, as peft 0.15 saved it: `bone_block` for `miss_block`, and no mini_r in the configuration."""
    architecture = ARCHITECTURES["llama"]
    base, patch, adapted = prepared(architecture, dtype, (TUNERS | VARIANTS)[mode](architecture), tmp_path)  # type: ignore[operator]
    config = json.loads((patch / "adapter_config.json").read_text())
    del config["mini_r"]
    (patch / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "BONE"}))
    weights = load_file(patch / "adapter_model.safetensors")
    renamed = {name.replace("miss_block", "bone_block"): value for name, value in weights.items()}
    save_file(renamed, patch / "adapter_model.safetensors")
    kind = {"miss": "miss (BONE)", "miss (bat)": "miss (bat, BONE)"}[mode]
    check_weights(kind, architecture, dtype, base, patch, adapted, tmp_path)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.filterwarnings("ignore:Adapter 'default'. 4 LoRA tensor")
@pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match")
def test_an_adalora_that_dropped_ranks_folds_as_peft_loads_it(dtype: str, tmp_path: Path) -> None:
    """rank_pattern keeps some ranks, all or none of a module; peft still divides by the first count of ranks."""
    architecture = ARCHITECTURES["llama"]
    config = peft.AdaLoraConfig(target_modules=["q_proj", "v_proj", "down_proj"], init_r=5, lora_alpha=7, total_step=10)
    base, patch, adapted = prepared(architecture, dtype, config, tmp_path)
    kept = {"q_proj": [True, False, True, False, False], "v_proj": [False] * 5, "down_proj": [True] * 5}
    live: Any = adapted
    named = [path for path, one in live.base_model.model.named_modules() if hasattr(one, "lora_E")]
    live.peft_config["default"].rank_pattern = {f"{path}.lora_E": kept[path.rpartition(".")[2]] for path in named}
    adapted.save_pretrained(str(patch), save_embedding_layers=False)
    before: Any = architecture.make(dtype=DTYPES[dtype])
    loaded = peft.PeftModel.from_pretrained(before.float(), str(patch))
    assert {handle.shape[0] for term in read(patch, base).terms for handle in [term.fields["A"]]} == {2, 5}
    check_weights("adalora (ranks dropped)", architecture, dtype, base, patch, loaded, tmp_path)
