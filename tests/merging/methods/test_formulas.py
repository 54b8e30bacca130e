"""Methods that no installed library has, on whole models through the engine, against their papers' formulas."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adapterhub.merging.folders import json_digest
from adapterhub.merging.ops.draws import chosen
from adapterhub.merging.recipes.canonical import input_digest
from tests.merging.exactness.compare import DTYPES, record, roundings
from tests.merging.methods.formulas import FORMULAS, Array, Where
from tests.merging.methods.tuned import NAMES, given, merged, on_every_architecture, state

ORACLE = "the paper's formula, float64"
RANDOM = {"dare_linear", "dare_ties", "della", "della_linear"}


def where(name: str, base: torch.Tensor, digests: list[str]) -> Where:
    """The tensor in one of two layers or in none, and masks as our generator draws them."""
    layer = re.search(r"\.(\d+)\.", name)

    def masks(number: int, likely: Any) -> Array:
        probability = likely if isinstance(likely, float) else torch.from_numpy(likely)
        return chosen(probability, 0, digests[number], name, base).numpy().astype(float)

    return Where(base.double().numpy(), float(layer[1]) if layer else 0.0, masks)


@pytest.mark.parametrize("dtype", DTYPES)
@on_every_architecture
@pytest.mark.parametrize("method", FORMULAS)
def test_whole_models_merge_as_the_paper_says(
    method: str, name: str, dtype: str, models: Callable[[str, str], Mapping[str, Path]], tmp_path: Path
) -> None:
    formula, weights, told = FORMULAS[method]
    folders = models(name, dtype)
    inputs = [f"{weight}*{one}" for weight, one in zip(weights, NAMES, strict=False)]
    found = merged(f"{method}(base; {', '.join(inputs)}{told})", folders, tmp_path / "out")
    base, tuned = state(folders["base"]), [state(folders[one]) for one in NAMES[: len(weights)]]
    digests = [json_digest([[1.0, input_digest(given(one, folders[one]))]]) for one in NAMES]
    expected = {}
    for key, W in base.items():
        D = [(one[key].double() - W.double()).numpy() for one in tuned]
        delta = formula(
            [one.reshape(len(one), -1) if one.ndim > 2 else one for one in D], weights, where(key, W, digests)
        )
        expected[key] = W.double() + torch.from_numpy(np.ascontiguousarray(delta)).view(W.shape)
    error = roundings(found, expected, DTYPES[dtype])
    with_masks = ", with our masks" if method in RANDOM else ""
    record(method, name, dtype, ORACLE + with_masks, error, "method")
    assert error <= 1.0
