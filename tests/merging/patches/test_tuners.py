"""Files of peft's other tuners: what is known of them, and that what does not fit together is refused by name."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from adapterhub.merging import patches
from adapterhub.merging.checkpoint import Checkpoint, LocalFolder
from adapterhub.merging.encodings import as_array
from adapterhub.merging.errors import InvalidPatch, MergingError, NotFoldable, ShapeMismatch
from tests.merging import tiny
from tests.merging.exactness.compare import trained

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Specified to not save p?vera_A and p?vera_B"),
    pytest.mark.filterwarnings("ignore:Detected that the base layer has no bias term"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type .* encountered"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
]

TARGETS = ["q_proj", "v_proj"]
KEY = "base_model.model.model.layers.0.self_attn.q_proj."

CONFIGS: dict[str, Callable[[], Any]] = {
    "ia3": lambda: peft.IA3Config(target_modules=[*TARGETS, "down_proj"], feedforward_modules=["down_proj"]),
    "vera": lambda: peft.VeraConfig(target_modules=TARGETS, r=6),
    "pvera": lambda: peft.PveraConfig(target_modules=TARGETS, r=6),
    "loha": lambda: peft.LoHaConfig(target_modules=TARGETS, r=3, alpha=5),
    "lokr": lambda: peft.LoKrConfig(target_modules=TARGETS, r=1, alpha=5, decompose_both=True),
    "shira": lambda: peft.ShiraConfig(target_modules=TARGETS, r=2, random_seed=3),
    "supertuning": lambda: peft.SupertuningConfig(target_modules=TARGETS, sparsity=0.8, r=2, lora_alpha=6.0),
    "c3a": lambda: peft.C3AConfig(target_modules=TARGETS, block_size=4),
    "miss": lambda: peft.MissConfig(target_modules=TARGETS, r=4),
    "oft": lambda: peft.OFTConfig(target_modules=TARGETS, oft_block_size=4),
    "hra": lambda: peft.HRAConfig(target_modules=TARGETS, r=4),
    "ln_tuning": lambda: peft.LNTuningConfig(target_modules=["input_layernorm"]),
    "trainable_tokens": lambda: peft.TrainableTokensConfig(target_modules=["embed_tokens"], token_indices=[9, 2, 5]),
    "beft": lambda: peft.BeftConfig(target_modules=TARGETS),
    "adalora": lambda: peft.AdaLoraConfig(target_modules=TARGETS, init_r=5, lora_alpha=7, total_step=10),
    "vblora": lambda: peft.VBLoRAConfig(target_modules=TARGETS, r=3, num_vectors=9, vector_length=4),
    "delora": lambda: peft.DeloraConfig(target_modules=TARGETS, r=3),
    "gralora": lambda: peft.GraloraConfig(target_modules=TARGETS, r=4, alpha=6, gralora_k=2, hybrid_r=2),
}


@pytest.fixture(scope="session", params=CONFIGS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders of real adapters on a tiny Llama, each made at its first use."""
    made: dict[str, Path] = {}

    def original(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            trained(tiny.llama(), CONFIGS[kind](), made[kind])
        return made[kind]

    return original


def changed(
    original: Path, folder: Path, config: dict[str, Any] | None = None, tensors: dict[str, Any] | None = None
) -> LocalFolder:
    """A copy of an adapter with other values in its configuration; a key or tensor that becomes None is left out."""
    said = json.loads((original / "adapter_config.json").read_text()) | (config or {})
    (folder / "adapter_config.json").write_text(json.dumps(said))
    stored: dict[str, Any] = load_file(original / "adapter_model.safetensors")
    values = {name: tensor for name, tensor in (stored | (tensors or {})).items() if tensor is not None}
    save_file(values, folder / "adapter_model.safetensors")
    return LocalFolder(folder)


# ---- facts -----------------------------------------------------------------------------------------------------------

FACTS: dict[str, tuple[str, int | None, dict[str, Any]]] = {
    "ia3": ("affine", None, {"feedforward_modules": ["down_proj"]}),
    "vera": ("additive", 6, {"r": 6, "save_projection": True, "projection_prng_key": 0}),
    "pvera": ("additive", 6, {"r": 6, "save_projection": True}),
    "loha": ("additive", 3, {"r": 3, "alpha": 5, "use_effective_conv2d": False}),
    "lokr": ("additive", 1, {"r": 1, "alpha": 5, "decompose_both": True, "decompose_factor": -1}),
    "shira": ("additive", None, {"r": 2, "mask_type": "random", "random_seed": 3}),
    "supertuning": ("additive", 2, {"sparsity": 0.8, "select_top": True, "r": 2, "lora_alpha": 6.0}),
    "c3a": ("additive", None, {"block_size": 4}),
    "miss": ("additive", 4, {"r": 4, "mini_r": 1, "init_weights": True}),
    "oft": ("affine", None, {"oft_block_size": 4, "coft": False, "num_cayley_neumann_terms": 5}),
    "hra": ("affine", None, {"r": 4, "apply_GS": False}),
    "ln_tuning": ("replace", None, {}),
    "trainable_tokens": ("replace", None, {}),
    "beft": ("additive", None, {}),
    "adalora": ("additive", 5, {"init_r": 5, "lora_alpha": 7}),
    "vblora": ("additive", 3, {"r": 3, "num_vectors": 9, "vector_length": 4, "topk": 2}),
    "delora": ("additive", 3, {"r": 3, "delora_lambda": 15}),
    "gralora": ("additive", 6, {"r": 4, "alpha": 6, "gralora_k": 2, "hybrid_r": 2}),
}


def test_every_tuner_here_has_its_facts_written_down() -> None:
    assert FACTS.keys() == CONFIGS.keys() <= patches.kinds().keys()


def test_a_real_file_is_recognised_with_its_facts(kind: str, originals: Callable[[str], Path]) -> None:
    folder = originals(kind)
    (facts,) = patches.inspect(LocalFolder(folder))
    effect, rank, detail = FACTS[kind]
    stored = load_file(folder / "adapter_model.safetensors")
    assert (facts.kind, facts.problems) == (kind, ())
    assert facts.reason == f"adapter_config.json says peft_type {kind.upper()!r}"
    assert (facts.effect, facts.rank_min, facts.rank_max) == (effect, rank, rank)
    assert detail.items() <= dict(facts.detail).items()
    assert facts.parameter_count == sum(tensor.numel() for tensor in stored.values())
    assert facts.base.name == "tiny/base"
    assert set(facts.layers) == ({"-"} if kind == "trainable_tokens" else {"0", "1"})


# ---- what is refused -------------------------------------------------------------------------------------------------

Z = torch.zeros
BANK = "base_model."
MODE = "init_weights"
REFUSED: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("ia3", {"feedforward_modules": 3}, {}, "feedforward_modules is 3"),
    ("ia3", {"feedforward_modules": "(a+)+b"}, {}, "too complicated"),
    ("ia3", {}, {KEY + "ia3_l": Z(4, 4)}, r"ia3_l is \(4, 4\)"),
    ("ia3", {}, {KEY + "ia3_l": Z(16)}, r"ia3_l is \(16,\)"),
    ("ia3", {}, {KEY + "ia3_l": Z(16, 1, dtype=torch.int8)}, "l has dtype I8"),
    ("vera", {"r": 0}, {}, "r is 0"),
    ("vera", {"r": 5}, {}, r"vera_lambda_d \(6,\); \(out,\) and \(5,\) are expected"),
    ("vera", {"projection_prng_key": "x"}, {}, "projection_prng_key is 'x'"),
    ("vera", {}, {BANK + "vera_A": None}, "no base_model.vera_A"),
    ("vera", {}, {BANK + "vera_A": Z(5, 16)}, r"vera_A is \(5, 16\)"),
    ("vera", {}, {BANK + "vera_B": Z(12, 6)}, r"vera_B is \(12, 6\); at least \(16, 6\)"),
    ("vera", {}, {KEY + "vera_lambda_b": None}, "has vera_lambda_d and no vera_lambda_b"),
    ("pvera", {}, {KEY + "pvera_lambda_d": Z(6)}, r"pvera_lambda_d \(6,\); \(out,\) and \(12,\) are expected"),
    ("pvera", {}, {BANK + "pvera_A": Z(6, 16)}, r"pvera_A is \(6, 16\)"),
    ("loha", {"alpha": -1}, {}, "alpha is -1"),
    ("loha", {"r": 4}, {}, r"rank is 3, adapter_config\.json says 4"),
    ("loha", {"rank_pattern": {"q_proj": 2}}, {}, r"rank is 3, adapter_config\.json says 2"),
    ("loha", {}, {KEY + "hada_w2_b": Z(3, 15)}, "equal ones are expected"),
    ("loha", {}, {KEY + "hada_w1_b": Z(2, 16), KEY + "hada_w2_b": Z(2, 16)}, "their ranks differ"),
    ("loha", {}, {KEY + "hada_t1": Z(3, 3, 2, 2)}, "their ranks differ"),
    ("loha", {}, {KEY + "hada_w2_a": None}, "no hada_w2_a"),
    ("lokr", {"alpha": "x"}, {}, "alpha is 'x'"),
    ("lokr", {"r": 2}, {}, r"rank is 1, adapter_config\.json says 2"),
    ("lokr", {}, {KEY + "lokr_w1_b": None}, r"lokr_w1_a is \(4, 1\) and lokr_w1_b None"),
    ("lokr", {}, {KEY + "lokr_w1": Z(4, 4)}, "lokr_w1 is"),
    ("lokr", {}, {KEY + "lokr_w2_b": Z(2, 4)}, "their ranks differ"),
    ("lokr", {}, {KEY + "lokr_t2": Z(2, 2, 1, 1)}, r"lokr_t2 is \(2, 2, 1, 1\)"),
    ("shira", {}, {KEY + "shira_indices": Z(64, dtype=torch.int32)}, "shira_indices"),
    ("shira", {}, {KEY + "shira_indices": Z(2, 64)}, "idx has dtype F32; one of I32, I64 is expected"),
    ("shira", {}, {KEY + "shira_indices": None}, "no shira_indices"),
    ("shira", {}, {KEY + "shira_indices": Z(2, 64, dtype=torch.int32)}, "listed twice"),
    ("shira", {}, {KEY + "shira_indices": -torch.ones(2, 64, dtype=torch.int32)}, "none is below 0"),
    ("supertuning", {"r": None}, {}, "low-rank part"),
    ("supertuning", {"r": 3}, {}, "says r 3"),
    ("supertuning", {"lora_alpha": None}, {}, "lora_alpha is None"),
    ("supertuning", {}, {KEY + "supertuning_indices": Z(51, dtype=torch.int32)}, "listed twice"),
    ("supertuning", {}, {KEY + "supertuning_indices": Z(50, dtype=torch.int32)}, "one position a value"),
    ("supertuning", {}, {KEY + "supertuning_indices": None}, "no supertuning_indices"),
    ("supertuning", {}, {KEY + "supertuning_lora_A.weight": None}, "low-rank part"),
    ("c3a", {"block_size": 0}, {}, "block_size is 0"),
    ("c3a", {"block_size": 8}, {}, r"its blocks are of 4, adapter_config\.json says 8"),
    ("c3a", {"block_size_pattern": {"q_proj": 2}}, {}, r"its blocks are of 4, adapter_config\.json says 2"),
    ("c3a", {}, {KEY + "c3a_kernel": Z(4, 16)}, r"c3a_kernel is \(4, 16\)"),
    ("miss", {"r": 3}, {}, r"miss_block is \(4, 16\); \(3, out\)"),
    ("miss", {MODE: "bat"}, {}, r"\(out / 4, 4, 4\) is expected"),
    ("miss", {MODE: "mini", "mini_r": 8}, {}, r"\(4, 8\) is expected"),
    ("miss", {MODE: "else"}, {}, "init_weights is 'else'"),
    ("miss", {}, {KEY + "miss_block": Z(4, 4, 4)}, r"miss_block is \(4, 4, 4\)"),
    ("oft", {"coft": True, "eps": -1}, {}, "eps is -1"),
    ("oft", {"use_cayley_neumann": "no"}, {}, "use_cayley_neumann is 'no'"),
    ("oft", {"num_cayley_neumann_terms": 10**6}, {}, "num_cayley_neumann_terms is 1000000"),
    ("oft", {"block_share": True}, {}, "block_share says that there is one block"),
    ("oft", {}, {KEY + "oft_R.weight": Z(4, 5)}, r"oft_R is \(4, 5\)"),
    ("hra", {"r": 3}, {}, r"hra_u is \(16, 4\); \(in, 3\)"),
    ("hra", {"r": 5, "apply_GS": True}, {KEY + "hra_u": torch.ones(4, 5)}, "cannot be made orthogonal"),
    ("hra", {"apply_GS": 1}, {}, "apply_GS is '1'"),
    ("ln_tuning", {}, {"base_model.model.model.layers.0.input_layernorm.ln_tuning_layers.weight": Z(0)}, "sharded run"),
    ("trainable_tokens", {"token_indices": [1]}, {}, "for 1 token indices"),
    ("trainable_tokens", {"token_indices": [1, 1, 2]}, {}, "unique whole numbers"),
    ("trainable_tokens", {"token_indices": {"x": [1]}}, {}, "a list is expected"),
    ("beft", {}, {KEY + "beft_bias": Z(16)}, r"beft_bias is \(16,\)"),
    ("adalora", {"init_r": 4}, {}, r"its rank is 5, adapter_config\.json says 4"),
    ("adalora", {"lora_alpha": "x"}, {}, "lora_alpha is 'x'"),
    ("adalora", {"rank_pattern": {"a": [1]}}, {}, "lists of true and false"),
    (
        "adalora",
        {"rank_pattern": {"model.layers.0.self_attn.q_proj.lora_E": [True, False]}},
        {},
        r"its rank is 5, adapter_config\.json says 1",
    ),
    ("adalora", {}, {KEY + "lora_E": Z(5)}, r"lora_E \(5,\)"),
    ("vblora", {"topk": 10}, {}, "topk is 10 of 9 vectors"),
    ("vblora", {"num_vectors": 8}, {}, r"vblora_vector_bank is \(9, 4\); \(8, 4\)"),
    ("vblora", {}, {BANK + "vblora_vector_bank": None}, "vblora_vector_bank is absent"),
    ("vblora", {"r": 2}, {}, r"vblora_logits_A is \(3, 4, 9\)"),
    ("vblora", {}, {KEY + "vblora_logits_A": None}, "no vblora_logits_A"),
    (
        "vblora",
        {"topk": 1},
        {KEY + "vblora_logits_A": None}
        | {KEY + "vblora_logits_A_topk_indices": torch.full((3, 4, 1), 9, dtype=torch.uint8)}
        | {KEY + "vblora_logits_A_topk_weights": Z(3, 4, 0)},
        "reach from 9 to 9, and the bank has 9 vectors",
    ),
    (
        "vblora",
        {},
        {KEY + "vblora_logits_A": None} | {KEY + "vblora_logits_A_topk_indices": Z(3, 4, 2, dtype=torch.uint8)},
        "neither vblora_logits_A nor both its topk_indices and topk_weights",
    ),
    ("delora", {"r": 2}, {}, r"its rank is 3, adapter_config\.json says 2"),
    ("delora", {}, {KEY + "delora_w_norm": Z(15)}, r"delora_w_norm \(15,\)"),
    ("gralora", {"gralora_k": 3}, {}, "which gralora_k 3 does not divide"),
    ("gralora", {"hybrid_r": 0}, {}, "says hybrid_r 0"),
    ("gralora", {"alpha": 0}, {}, "alpha is 0"),
    ("gralora", {}, {KEY + "gralora_A": Z(2, 8, 3)}, r"gralora_A is \(2, 8, 3\)"),
]


@pytest.mark.parametrize(("kind", "config", "tensors", "says"), REFUSED)
def test_what_does_not_fit_together_is_refused(
    kind: str,
    config: dict[str, Any],
    tensors: dict[str, Any],
    says: str,
    originals: Callable[[str], Path],
    llama_folder: Path,
    tmp_path: Path,
) -> None:
    folder = changed(originals(kind), tmp_path, config, tensors)
    assert [facts.kind for facts in patches.inspect(folder)] == [kind]
    with pytest.raises(InvalidPatch, match=says):
        patches.read(folder, base=Checkpoint.open(LocalFolder(llama_folder)))


WHY_NOT: list[tuple[str, dict[str, Any], str]] = [
    ("pvera", {"sample_at_inference": True}, "draws new weights at each pass"),
    ("supertuning", {"save_precomputed_indices": False}, "does not hold supertuning_indices"),
]


@pytest.mark.parametrize(("kind", "config", "says"), WHY_NOT)
def test_what_has_no_fixed_weights_is_shown_and_not_read(
    kind: str, config: dict[str, Any], says: str, originals: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = changed(originals(kind), tmp_path, config)
    assert says in patches.inspect(folder)[0].problems[0]
    with pytest.raises(NotFoldable, match=says):
        patches.read(folder)


@pytest.mark.parametrize(
    "kind", ["loha", "lokr", "c3a", "oft", "hra", "miss", "shira", "supertuning", "delora", "gralora"]
)
def test_a_module_of_another_shape_is_refused_by_site(
    kind: str, originals: Callable[[str], Path], tmp_path: Path
) -> None:
    weights = {f"model.layers.{layer}.self_attn.{name}.weight": Z(6, 10) for layer in (0, 1) for name in TARGETS}
    save_file(weights, tmp_path / "model.safetensors")
    base = Checkpoint.open(LocalFolder(tmp_path), name="small")
    with pytest.raises((ShapeMismatch, InvalidPatch), match=r"q_proj.*(base 'small' has|outside a weight of)"):
        patches.read(LocalFolder(originals(kind)), base=base)


@pytest.mark.parametrize("kind", ["loha", "lokr", "c3a", "oft", "hra", "miss", "shira", "supertuning"])
def test_a_weight_stored_transposed_is_refused_where_peft_adapts_none(
    kind: str, originals: Callable[[str], Path], tmp_path: Path
) -> None:
    """A square Conv1D does not show by its shape that it is one."""
    (tmp_path / "patch").mkdir()
    folder = changed(originals(kind), tmp_path / "patch")
    stored = load_file(tmp_path / "patch" / "adapter_model.safetensors")
    renamed = {
        name.replace("self_attn.q_proj", "attn.c_proj"): tensor
        for name, tensor in stored.items()
        if "v_proj" not in name
    }
    save_file(renamed, tmp_path / "patch" / "adapter_model.safetensors")
    (tmp_path / "base").mkdir()
    save_file(
        {f"model.layers.{layer}.attn.c_proj.weight": Z(16, 16) for layer in (0, 1)},
        tmp_path / "base" / "model.safetensors",
    )
    (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(NotFoldable, match=r"stored \(in, out\)"):
        patches.read(folder, base=Checkpoint.open(LocalFolder(tmp_path / "base")))


# ---- without a base, and other orders --------------------------------------------------------------------------------


def test_what_repeats_along_the_base_says_so_without_one(originals: Callable[[str], Path]) -> None:
    with pytest.raises(NotFoldable, match="read it with its base"):
        patches.read(LocalFolder(originals("miss")))


def test_drawn_banks_need_the_base(tmp_path: Path) -> None:
    trained(tiny.llama(), peft.VeraConfig(target_modules=TARGETS, r=6, save_projection=False), tmp_path)
    (facts,) = patches.inspect(LocalFolder(tmp_path))
    assert facts.problems == ()
    with pytest.raises(NotFoldable, match="read the adapter with its base"):
        patches.read(LocalFolder(tmp_path))


@pytest.mark.parametrize("kind", ["shira", "supertuning"])
def test_entries_in_any_order_are_the_same_terms(
    kind: str, originals: Callable[[str], Path], llama_folder: Path, tmp_path: Path
) -> None:
    stored = load_file(originals(kind) / "adapter_model.safetensors")
    shuffled = {}
    for name, tensor in stored.items():
        if name.endswith(("_indices", "shira_weight", "supertuning_values")):
            generator = np.random.default_rng(0)  # the same order for a module's values and positions
            tensor = tensor[..., torch.tensor(generator.permutation(tensor.shape[-1]))].contiguous()
        shuffled[name] = tensor
    base = Checkpoint.open(LocalFolder(llama_folder))
    first = patches.read(LocalFolder(originals(kind)), base=base).terms
    second = patches.read(changed(originals(kind), tmp_path, {}, shuffled), base=base).terms
    assert [term.site for term in first] == [term.site for term in second]
    for one, other in zip(first, second, strict=True):
        for field in one.fields:
            assert np.array_equal(as_array(one.fields[field]), as_array(other.fields[field]))
        if one.term == "sparse" and kind == "supertuning":
            assert (np.diff(as_array(one.fields["idx"]).astype(np.int64)) > 0).all()


def test_of_equal_logits_the_first_counts(originals: Callable[[str], Path], tmp_path: Path) -> None:
    stored = load_file(originals("vblora") / "adapter_model.safetensors")
    logits = Z(3, 4, 9)
    logits[..., 7] = 1.0
    folder = changed(originals("vblora"), tmp_path, {}, {KEY + "vblora_logits_A": logits})
    term = next(one for one in patches.read(folder).terms if "layers.0.self_attn.q_proj" in one.site)
    bank, weights = stored[BANK + "vblora_vector_bank"], torch.tensor([1.0, 0.0]).softmax(0)
    expected = (weights[0] * bank[7] + weights[1] * bank[0]).repeat(3, 4)
    np.testing.assert_allclose(as_array(term.fields["A"]), expected.numpy(), rtol=1e-6)


json_values: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | st.text(max_size=4)
)
json_values = (
    json_values | st.lists(json_values, max_size=3) | st.dictionaries(st.text(max_size=4), json_values, max_size=3)
)


def is_json(text: bytes) -> bool:
    """Whether no number of it is one of those that Python writes and JSON has not; texts may hold the words."""
    found: list[str] = []
    json.loads(text, parse_constant=found.append)
    return not found


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_configuration_is_answered(
    data: st.DataObject, kind: str, originals: Callable[[str], Path], tmp_path: Path
) -> None:
    said = json.loads((originals(kind) / "adapter_config.json").read_text())
    keys = st.sampled_from(sorted(said.keys() - {"peft_type"}))
    folder = changed(originals(kind), tmp_path, data.draw(st.dictionaries(keys, json_values, max_size=3)))
    (facts,) = patches.inspect(folder)
    # Infinity, which Python's json writes, is no JSON: such a file is said to be none.
    assert facts.kind == (kind if is_json(folder.read("adapter_config.json")) else "unknown")
    assert all(isinstance(sentence, str) for sentence in facts.problems)
    with contextlib.suppress(MergingError):
        assert patches.read(folder).terms is not None


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_tensors_of_any_shape_are_answered(
    data: st.DataObject, kind: str, originals: Callable[[str], Path], llama_folder: Path, tmp_path: Path
) -> None:
    """Refused, or read as terms whose values can be read too."""
    stored = load_file(originals(kind) / "adapter_model.safetensors")
    names = data.draw(st.lists(st.sampled_from(sorted(stored)), min_size=1, max_size=2))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.int32, torch.uint8]))
    shapes = st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, 6, 8, 9, 16]), max_size=4)
    folder = changed(originals(kind), tmp_path, {}, {name: Z(data.draw(shapes), dtype=dtype) for name in names})
    assert [facts.kind for facts in patches.inspect(folder)] == [kind]
    with contextlib.suppress(MergingError):
        for term in patches.read(folder, base=Checkpoint.open(LocalFolder(llama_folder))).terms:
            assert all(len(handle.read()) == handle.nbytes for handle in term.fields.values())
