"""Every method of mergekit's on whole tiny models, through the engine, against mergekit on their state dicts."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from mergekit import merge_methods as mergekit

from tests.merging.exactness.compare import DTYPES, record, roundings
from tests.merging.methods.test_mergekit import CASES, Case
from tests.merging.methods.tuned import NAMES, merged, on_every_architecture, state


def text_of(case: Case) -> str:
    """The case as an expression on base, a, b and c."""
    weights = list(case.weights) or [1.0] * case.models
    terms = [one if weight == 1 else f"{weight}*{one}" for weight, one in zip(weights, NAMES, strict=False)]
    told = [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in case.ours.items()]
    return f"{case.method}(base; {', '.join([*terms[: case.models], *told])})"


@pytest.mark.parametrize("dtype", DTYPES)
@on_every_architecture
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.usefixtures("stable")
def test_whole_models_merge_as_in_mergekit(
    case: Case, name: str, dtype: str, models: Callable[[str, str], Mapping[str, Path]], tmp_path: Path
) -> None:
    given = models(name, dtype)
    found = merged(text_of(case), given, tmp_path / "out")
    states = {one: state(given[one]) for one in ("base", *NAMES[: case.models])}
    if not case.has_base and case.method != "slerp":
        states.pop("base")
    told = dict(case.theirs) | ({"weight": list(case.weights)} if case.weights else {})
    expected = mergekit.merge_state_dicts(
        states,
        case.method,
        parameters=told,
        base="base" if "base" in states else None,
        dtype=torch.float32,
        out_dtype=torch.float32,
    )
    error = roundings(found, expected, DTYPES[dtype])
    record(str(case), name, dtype, "mergekit 0.1.5 merge_state_dicts", error, "method")
    assert error <= 1.0
