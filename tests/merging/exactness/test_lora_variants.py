"""LoRA whose training changed the base, or that adapts stacked experts, against the live adapter's own output."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import BdLoraConfig, CordaConfig, KasaConfig, LoraGAConfig, MontecloraConfig, VeloraConfig
from peft.tuners.lora.loraga import preprocess_loraga
from safetensors.torch import load_file, save_file

from adapterhub.merging.checkpoint import Checkpoint, LocalFolder
from adapterhub.merging.effects import effects
from adapterhub.merging.errors import InvalidPatch
from adapterhub.merging.patches.lora import SPEC, export, read_with_initial
from tests.merging import tiny
from tests.merging.exactness.architectures import ARCHITECTURES, Architecture, output
from tests.merging.exactness.compare import (
    DTYPES,
    LOGITS,
    LOGITS_OF,
    check_logits,
    check_weights,
    fold,
    prepared,
    read,
    record,
    trained,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to"),
    pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match"),
]

CHANGING: dict[str, dict[str, Any]] = {
    "lora (pissa)": {"init_lora_weights": "pissa"},
    "lora (pissa, rslora)": {"init_lora_weights": "pissa", "use_rslora": True},
    "lora (olora)": {"init_lora_weights": "olora"},
    "lora (kasa)": {"kasa_config": KasaConfig()},
}


# ---- what the initialisation took out of the base ------------------------------------------------------------------


def _refused(variant: str, name: str) -> bool:
    """peft's OLoRA forgets that a Conv1D is stored (in, out), and its KaSA adapts none."""
    return ARCHITECTURES[name].has_conv1d and variant in ("lora (olora)", "lora (kasa)")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("variant", "name"), [(one, name) for one in CHANGING for name in ARCHITECTURES if not _refused(one, name)]
)
def test_a_lora_that_changed_its_base_folds_into_the_base_as_it_was(
    variant: str, name: str, dtype: str, tmp_path: Path
) -> None:
    architecture = ARCHITECTURES[name]
    config = LoraConfig(target_modules=list(architecture.linear), r=3, lora_alpha=5, **CHANGING[variant])
    base, patch, adapted = prepared(architecture, dtype, config, tmp_path)
    if variant == "lora (kasa)":
        check_logits(variant, architecture, dtype, base, patch, adapted, tmp_path / "live")
    # peft puts the components that KaSA keeps together in float32 and so loses up to 1.5 roundings of W; we do not
    if variant != "lora (kasa)" or dtype == "bfloat16":
        check_weights(variant, architecture, dtype, base, patch, adapted, tmp_path)


def _prepare(init: str, model: Any, config: LoraConfig, architecture: Architecture) -> None:
    """What the initialisation wants to know of a model: activations, or gradients."""
    if init == "corda":
        # what peft's preprocess_corda leaves at a module, of a random covariance; it needs a package that is not here
        for path, module in model.named_modules():
            if path.endswith(architecture.linear[0]):
                W = module.weight.T if architecture.has_conv1d else module.weight
                C = torch.eye(W.shape[1]) + 0.1 * torch.randn(W.shape[1], W.shape[1]).abs()
                u, s, vh = torch.linalg.svd(W.detach() @ C, full_matrices=False)
                V = (vh @ torch.linalg.inv(C)).T
                module.eigens = SimpleNamespace(U_WC=u[:, :3], S_WC=s[:3], V_WC=V[:, :3])
    elif init == "lora_ga":
        preprocess_loraga(model, config, lambda: model(**architecture.inputs()).logits.sum().backward())
        model.zero_grad()


UNKNOWABLE: dict[str, dict[str, Any]] = {
    "pissa_niter_2": {},
    "corda": {"corda_config": CordaConfig(corda_method="kpm", verbose=False)},
    "lora_ga": {"lora_ga_config": LoraGAConfig()},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("init", UNKNOWABLE)
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_with_the_initial_adapter_it_is_a_plain_lora_of_twice_the_rank(
    name: str, init: str, dtype: str, tmp_path: Path
) -> None:
    architecture = ARCHITECTURES[name]
    base = tiny.saved(architecture.make(dtype=DTYPES[dtype]), tmp_path / "base")
    chosen: dict[str, Any] = {"init_lora_weights": init, **UNKNOWABLE[init]}
    config = LoraConfig(target_modules=[architecture.linear[0]], r=3, lora_alpha=5, **chosen)
    model: Any = architecture.make(dtype=DTYPES[dtype])
    model = model.float()
    _prepare(init, model, config, architecture)
    adapted: Any = get_peft_model(model, config)
    adapted.save_pretrained(tmp_path / "initial")
    torch.manual_seed(5)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
    adapted.save_pretrained(tmp_path / "patch")
    expected = output(adapted, architecture).double()

    opened = Checkpoint.open(LocalFolder(base))
    patch = read_with_initial(LocalFolder(tmp_path / "patch"), "", LocalFolder(tmp_path / "initial"), "", opened)
    assert export([(1.0, patch)], "tiny/base").files["adapter_config.json"]["r"] == 6
    folded = load_file(base / "model.safetensors")
    for site in {term.site for term in patch.terms}:
        terms = [(1.0, term) for term in patch.terms if term.site == site]
        folded[site] = folded[site] + effects(terms, folded[site].float()).change(folded[site].float())
    out = shutil.copytree(base, tmp_path / "out")
    save_file(folded, out / "model.safetensors", {"format": "pt"})
    merged: Any = architecture.loader.from_pretrained(out)
    found = output(merged.float(), architecture).double()
    error = float((found - expected).abs().max() / expected.abs().max())
    record(f"lora ({init}, initial adapter)", name, dtype, "live adapter", error, "logits")
    assert error <= LOGITS_OF[dtype]


@pytest.mark.parametrize("variant", ["lora (pissa)", "lora (olora)"])
def test_as_lora_makes_a_plain_one_that_peft_loads_on_the_original_base(variant: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES["llama"]
    config = LoraConfig(target_modules=["q_proj", "down_proj"], r=3, lora_alpha=5, **CHANGING[variant])
    base, patch, adapted = prepared(architecture, "float32", config, tmp_path)
    expected = output(adapted, architecture).double()
    fold(base, patch, tmp_path / "plain", as_kind="lora")
    loaded = PeftModel.from_pretrained(architecture.loader.from_pretrained(base), tmp_path / "plain")
    found = output(loaded, architecture).double()
    assert float((found - expected).abs().max() / expected.abs().max()) <= LOGITS


def test_an_initial_adapter_of_other_shapes_is_refused(tmp_path: Path) -> None:
    tiny.adapter(tiny.llama(), tmp_path / "a", r=2, target_modules=["q_proj"])
    tiny.adapter(tiny.llama(), tmp_path / "b", r=4, target_modules=["q_proj"])
    with pytest.raises(InvalidPatch, match="other shapes"):
        read_with_initial(LocalFolder(tmp_path / "a"), "", LocalFolder(tmp_path / "b"), "", None)


def test_without_a_base_no_factors_pass_for_the_delta(tmp_path: Path) -> None:
    config = LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights="pissa")
    _, patch, _ = prepared(ARCHITECTURES["llama"], "float32", config, tmp_path)
    assert SPEC.read(LocalFolder(patch), "", None).terms == ()


# ---- factors that are stored otherwise, and what is stored beside them -----------------------------------------------


BESIDE: dict[str, dict[str, Any]] = {
    "lora (velora)": {"velora_config": VeloraConfig(num_groups=4)},
    "lora (monteclora)": {"monteclora_config": MontecloraConfig()},
    "lora (mica)": {"init_lora_weights": "mica"},
    "lora (orthogonal)": {"init_lora_weights": "orthogonal"},
}


def _blocks(architecture: Architecture) -> dict[str, Any]:
    first, *others = architecture.linear
    return {"use_bdlora": BdLoraConfig(target_modules_bd_a=others, target_modules_bd_b=[first], nblocks=2)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", ["lora (bdlora)", *BESIDE])
@pytest.mark.parametrize("name", ["llama", "mistral", "phi3", "opt"])
def test_other_variants_fold_as_peft_merges(name: str, variant: str, dtype: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES[name]
    chosen = _blocks(architecture) if variant == "lora (bdlora)" else BESIDE[variant]
    config = LoraConfig(target_modules=list(architecture.linear), r=4, lora_alpha=6, **chosen)
    base, patch, adapted = prepared(architecture, dtype, config, tmp_path)
    check_weights(variant, architecture, dtype, base, patch, adapted, tmp_path)


# ---- experts ---------------------------------------------------------------------------------------------------------

PARAMETERS: Mapping[str, list[str]] = {
    "both": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    "both, turned round": ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"],
    "down": ["mlp.experts.down_proj"],
    "up": ["mlp.experts.gate_up_proj"],
    "a module's weight": ["mlp.experts.down_proj", "self_attn.q_proj.weight"],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("which", PARAMETERS)
def test_stacked_experts_fold_into_each_experts_own_weights(which: str, dtype: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES["mixtral"]
    pattern: dict[str, Any] = {"rank_pattern": {"experts.down_proj": 2}, "alpha_pattern": {"experts.down_proj": 7}}
    config = LoraConfig(target_modules=["k_proj"], target_parameters=PARAMETERS[which], r=3, lora_alpha=5, **pattern)
    base, patch, adapted = prepared(architecture, dtype, config, tmp_path)
    check_weights("lora (experts)", architecture, dtype, base, patch, adapted, tmp_path)


@pytest.mark.parametrize("dtype", DTYPES)
def test_experts_fold_to_the_live_adapters_logits(dtype: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES["mixtral"]
    config = LoraConfig(target_modules=["k_proj"], target_parameters=PARAMETERS["both"], r=3, lora_alpha=5)
    base, patch, adapted = prepared(architecture, dtype, config, tmp_path)
    check_logits("lora (experts)", architecture, dtype, base, patch, adapted, tmp_path)


def test_factors_go_to_the_parameter_of_their_shape_even_where_one_is_square(tmp_path: Path) -> None:
    architecture = ARCHITECTURES["mixtral"]
    for number, width in enumerate((8, 16)):  # gate_up_proj is (16, 16), then down_proj
        base = tiny.saved(architecture.make(intermediate_size=width), tmp_path / f"base{number}")
        config = LoraConfig(target_modules=[], target_parameters=PARAMETERS["both"], r=3, lora_alpha=5)
        patch = tmp_path / f"patch{number}"
        adapted = trained(architecture.make(intermediate_size=width), config, patch)
        expected = output(adapted, architecture).double()
        merged = architecture.loader.from_pretrained(fold(base, patch, tmp_path / f"out{number}"))
        found = output(merged, architecture).double()
        assert float((found - expected).abs().max() / expected.abs().max()) <= LOGITS


@pytest.mark.parametrize("is_transposed", [False, True])
def test_a_base_that_stores_experts_stacked_gets_one_term_in_its_layout(is_transposed: bool, tmp_path: Path) -> None:
    E, out, fan_in, r = 3, 6, 4, 2
    shape = (E, fan_in, out) if is_transposed else (E, out, fan_in)
    base = tmp_path / "base"
    base.mkdir()
    save_file({"model.layers.0.mlp.experts.gate_up_proj": torch.zeros(shape)}, base / "model.safetensors")
    (base / "config.json").write_text(json.dumps({"model_type": "gpt_oss" if is_transposed else "mixtral"}))
    A, B = torch.randn(E * r, fan_in), torch.randn(out, r * E)
    patch = tmp_path / "patch"
    patch.mkdir()
    key = "base_model.model.model.layers.0.mlp.experts.lora_{}.weight"
    save_file({key.format("A"): A, key.format("B"): B}, patch / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": r, "lora_alpha": 6, "target_parameters": ["experts.gate_up_proj"]}
    (patch / "adapter_config.json").write_text(json.dumps(config))
    (term,) = read(patch, base).terms
    delta = 3.0 * torch.einsum(
        "ore,eri->eio" if is_transposed else "ore,eri->eoi",
        B.double().view(out, r, E),
        A.double().view(E, r, fan_in),
    )
    W = torch.zeros(shape)
    torch.testing.assert_close(effects([(1.0, term)], W).change(W).double(), delta, rtol=1e-5, atol=1e-5)


def test_modules_of_single_experts_fold_into_a_base_that_stacks_them(tmp_path: Path) -> None:
    E, width, d, r = 3, 6, 4, 2
    base, patch = tmp_path / "base", tmp_path / "patch"
    base.mkdir()
    patch.mkdir()
    stem = "model.layers.0.mlp.experts."
    W = {stem + "gate_up_proj": torch.randn(E, 2 * width, d), stem + "down_proj": torch.randn(E, d, width)}
    save_file(W | {"model.layers.0.q_proj.weight": torch.zeros(d, d)}, base / "model.safetensors")
    (base / "config.json").write_text(json.dumps({"model_type": "mixtral"}))
    shapes = {"w1": (width, d), "w2": (d, width), "w3": (width, d)}
    expected = {name: tensor.double() for name, tensor in W.items()}
    tensors: dict[str, torch.Tensor] = {}
    for number in (0, 2):
        for name, (out, fan_in) in shapes.items():
            A, B = torch.randn(r, fan_in), torch.randn(out, r)
            key = f"base_model.model.model.layers.0.block_sparse_moe.experts.{number}.{name}.lora_{{}}.weight"
            tensors |= {key.format("A"): A, key.format("B"): B}
            target = expected[stem + ("down_proj" if name == "w2" else "gate_up_proj")][number]
            rows = slice(width, None) if name == "w3" else slice(0, out)
            target[rows] += 1.5 * (B.double() @ A.double())
    save_file(tensors, patch / "adapter_model.safetensors")
    (patch / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": r, "lora_alpha": 3}))
    terms = read(patch, base).terms
    assert {term.site for term in terms} == set(W)
    for term in terms:
        found = W[term.site] + effects([(1.0, term)], W[term.site]).change(W[term.site])
        torch.testing.assert_close(found.double(), expected[term.site], rtol=1e-5, atol=1e-5)
