"""Laws of every kind that works at run time: it acts as its oracle says, and leaves no trace."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adapterhub.merging import patches, runtime
from adapterhub.merging.checkpoint import LocalFolder
from adapterhub.merging.errors import MergingError, NotFoldable
from tests.merging.exactness.architectures import ARCHITECTURES
from tests.merging.exactness.compare import DTYPES, LOGITS, record
from tests.merging.runtime.cases import CASES, Case, Made

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Position ids are not supported"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False but the target module is `Conv1D`"),
]
TOLERANCE = {"float32": LOGITS, "bfloat16": 3e-2}
"""Largest relative difference: products in another order, and in bfloat16 its eight bits through a whole model."""

BROKEN_IN_PEFT = frozenset(
    {"prompt_tuning", "p_tuning", "multitask_prompt_tuning", "cpt", "prefix_tuning", "cartridge"}
)
"""Kinds that peft puts before every token where the cache is called `cache`: its forward pass is the oracle."""

QUICK = ("llama", "gpt2", "bert", "t5")
every_case = pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if case.architecture in QUICK else pytest.mark.slow) for case in CASES],
    ids=str,
)
one_a_kind = pytest.mark.parametrize(
    "case", list({case.kind: case for case in reversed(CASES)}.values()), ids=lambda case: case.kind
)


def attach(made: Made, weight: float = 1.0) -> Callable[[], None]:
    folder = LocalFolder(made.folder)
    facts = next(one for one in patches.inspect(folder) if one.path == made.path)
    assert facts.problems == ()
    assert facts.effect == "runtime"
    return runtime.runtimes()[facts.kind].attach(made.model, folder, made.path, weight)


def inputs_of(case: Case, made: Made, dtype: str) -> dict[str, torch.Tensor]:
    if made.inputs is not None:
        return dict(made.inputs)
    given = ARCHITECTURES[case.architecture].inputs()
    return {name: one.to(DTYPES[dtype]) if one.is_floating_point() else one for name, one in given.items()}


def logits(model: Any, given: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**given).logits
    return found


def trace(model: Any) -> list[Any]:
    """Everything of a model that a patch could have left something in."""
    found: list[Any] = [repr(model.config), repr(getattr(model, "generation_config", None))]
    for name, module in model.named_modules():
        attributes = {key: id(value) for key, value in vars(module).items()}
        kept = {
            key: [(inner, id(one)) for inner, one in value.items()]
            for key, value in vars(module).items()
            if isinstance(value, dict)
        }
        found.append((name, id(module), type(module), attributes, kept, module.training))
    found += [(name, one.requires_grad, one.grad is None) for name, one in model.named_parameters()]
    return found


def values(model: Any) -> dict[str, bytes]:
    return {name: one.contiguous().view(torch.uint8).numpy().tobytes() for name, one in model.state_dict().items()}


@pytest.mark.parametrize("dtype", DTYPES)
@every_case
def test_a_patched_model_answers_as_the_oracle(case: Case, dtype: str, tmp_path: Path) -> None:
    made = case.make(tmp_path, dtype)
    given = inputs_of(case, made, dtype)
    bare = logits(made.model, given)
    attach(made)
    with torch.no_grad():
        expected = made.oracle(**given, **made.calls).double()
    found = logits(made.model, {**given, **made.calls}).double()
    assert found.shape == expected.shape
    error = float((found - expected).abs().max() / expected.abs().max())
    record(case.kind, case.architecture, dtype, made.oracle_name, error, "logits")
    assert error <= TOLERANCE[dtype]
    assert not torch.allclose(found[:, -bare.shape[1] :], bare.double(), rtol=1e-2)


@every_case
def test_a_patched_model_generates_what_the_oracle_says_token_by_token(case: Case, tmp_path: Path) -> None:
    if not case.generates:
        pytest.skip("a model of this task generates nothing")
    made = case.make(tmp_path, "float32")
    given = inputs_of(case, made, "float32")
    attach(made)
    is_pair = made.model.config.is_encoder_decoder
    if is_pair:
        given["decoder_input_ids"] = torch.tensor([[made.model.config.decoder_start_token_id]])
    written = "decoder_input_ids" if is_pair else "input_ids"
    found = made.model.generate(**given, **made.calls, max_new_tokens=6, do_sample=False)
    if made.peft is not None and (is_pair or case.kind not in BROKEN_IN_PEFT):
        given.pop("decoder_input_ids", None)
        expected = made.peft.generate(**given, **made.calls, max_new_tokens=6, do_sample=False)
        assert found.tolist() == expected.tolist()
        record(case.kind, case.architecture, "float32", "peft generate", 0.0, "generate")
        return
    with torch.no_grad():
        for _ in range(6):
            following = made.oracle(**given, **made.calls)[:, -1:].argmax(-1)
            given[written] = torch.cat([given[written], following], dim=1)
    assert found.tolist() == given[written].tolist()
    record(case.kind, case.architecture, "float32", made.oracle_name + ", token by token", 0.0, "generate")


@pytest.mark.parametrize("dtype", DTYPES)
@every_case
def test_detaching_leaves_no_trace(case: Case, dtype: str, tmp_path: Path) -> None:
    made = case.make(tmp_path, dtype)
    given = inputs_of(case, made, dtype)
    before, bare, stored = trace(made.model), logits(made.model, given), values(made.model)
    state = torch.random.get_rng_state()
    detach = attach(made)
    logits(made.model, {**given, **made.calls})
    if case.generates:
        made.model.generate(**given, **made.calls, max_new_tokens=2, do_sample=False)
    detach()
    assert trace(made.model) == before
    assert values(made.model) == stored
    assert torch.equal(logits(made.model, given), bare)
    assert torch.equal(torch.random.get_rng_state(), state)
    detach()
    assert trace(made.model) == before


@one_a_kind
def test_patches_come_off_in_either_order(case: Case, tmp_path: Path) -> None:
    made = case.make(tmp_path, "float32")
    given = inputs_of(case, made, "float32")
    before, bare = trace(made.model), logits(made.model, given)
    first = attach(made)
    alone = logits(made.model, {**given, **made.calls})
    try:
        second = attach(made)
    except MergingError:
        assert torch.equal(logits(made.model, {**given, **made.calls}), alone)
    else:
        first()
        assert torch.equal(logits(made.model, {**given, **made.calls}), alone)
        second()
    first()
    assert trace(made.model) == before
    assert torch.equal(logits(made.model, given), bare)


@one_a_kind
def test_a_patch_that_does_not_fit_leaves_the_model_untouched(case: Case, tmp_path: Path) -> None:
    made = case.make(tmp_path, "float32")
    architecture = ARCHITECTURES[case.architecture.split()[0].removesuffix("-mlm")]
    wide = {"hidden_size": 32, "n_embd": 32, "d_model": 32, "d_kv": 8, "head_dim": 8, "embedding_size": 32}
    grown: dict[str, Any] = {name: size for name, size in wide.items() if name in architecture.sizes}
    made.model = architecture.make(**grown)
    before, stored = trace(made.model), values(made.model)
    with pytest.raises(MergingError):
        attach(made)
    assert trace(made.model) == before
    assert values(made.model) == stored


@one_a_kind
def test_a_strength_is_refused_where_the_kind_has_none(case: Case, tmp_path: Path) -> None:
    made = case.make(tmp_path, "float32")
    if case.kind in HAVE_STRENGTH:
        attach(made, 0.5)()
        return
    with pytest.raises(NotFoldable, match="weight"):
        attach(made, 0.5)


HAVE_STRENGTH = frozenset(
    {"lily", "poly", "alora", "loramoe", "arrow", "xlora", "steering", "reft", "bottleneck", "lofit", "adapters"}
)
"""Kinds whose weight means something."""


def test_every_kind_that_runs_is_exercised() -> None:
    assert {case.kind for case in CASES} == set(runtime.runtimes())
