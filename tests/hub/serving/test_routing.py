"""A router fitted to texts: it tells domains apart, and is the regression that numpy gives."""

from typing import Any

import numpy as np
import pytest
import torch

from adapterhub.hub.serving.routing import HELD_OUT, RIDGE, fit
from adapterhub.merging.errors import InvalidParameter, UnknownSite
from tests.merging import tiny

MODULES = ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj", "model.layers.1.mlp.down_proj"]


def texts(count: int = 20, length: int = 12, seed: int = 0) -> dict[str, list[list[int]]]:
    """Two domains of five tokens each that share none: a plane through the origin parts ten vectors of width 16."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for number, domain in enumerate(("low", "high")):
        ids = torch.randint(16 * number, 16 * number + 5, (count, length), generator=generator)
        found[domain] = ids.tolist()
    return found


def inputs(model: Any, module: str, several: list[list[int]]) -> Any:
    """What goes into a layer, (tokens, in) in float64, from a hook of the test's own."""
    seen = []
    handle = model.get_submodule(module).register_forward_pre_hook(
        lambda _, given: seen.append(given[0].detach()[0].double().numpy())
    )
    with torch.no_grad():
        for text in several:
            model(input_ids=torch.tensor([text]))
    handle.remove()
    return np.concatenate(seen)


def test_the_matrix_is_the_ridge_regression_of_domains_on_inputs() -> None:
    model, data = tiny.llama(), texts()
    routes = fit(model, MODULES, data)
    for module in MODULES:
        learnt = {
            domain: [text for n, text in enumerate(several) if n % HELD_OUT != HELD_OUT - 1]
            for domain, several in data.items()
        }
        rows = [inputs(model, module, several) for several in learnt.values()]
        X = np.concatenate([x / np.sqrt(len(x)) for x in rows])
        Y = np.concatenate([np.tile(np.eye(2)[n] - 0.5, (len(x), 1)) / np.sqrt(len(x)) for n, x in enumerate(rows)])
        gram = X.T @ X
        expected = np.linalg.solve(gram + RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram)), X.T @ Y)
        found = routes.matrices[module].double().numpy().T
        scale = (found * expected).sum() / (expected * expected).sum()
        assert scale > 1
        np.testing.assert_allclose(found, scale * expected, rtol=1e-4, atol=1e-4 * np.abs(found).max())


def test_no_other_scale_has_less_cross_entropy_on_what_was_held_out() -> None:
    model, data = tiny.llama(seed=3), texts(seed=3)
    matrix = fit(model, MODULES, data).matrices[MODULES[0]].double()
    kept = [several[HELD_OUT - 1 :: HELD_OUT] for several in data.values()]
    scores = [torch.from_numpy(inputs(model, MODULES[0], several)) @ matrix.T for several in kept]

    def entropy(factor: float) -> float:
        return sum(float(-torch.log_softmax(s * factor, -1)[:, n].mean()) for n, s in enumerate(scores))

    assert all(entropy(1.0) <= entropy(factor) + 1e-6 for factor in (0.5, 0.9, 1.1, 2.0))


def test_domains_without_a_common_token_are_told_apart() -> None:
    routes = fit(tiny.llama(), MODULES[:2], texts(60))
    assert min(routes.accuracy.values()) > 0.9


def test_what_cannot_be_fitted_is_said_by_name() -> None:
    with pytest.raises(InvalidParameter, match="low: 4 texts; at least 5"):
        fit(tiny.llama(), MODULES, texts(4))
    with pytest.raises(UnknownSite, match=r"model\.layers\.9"):
        fit(tiny.llama(), ["model.layers.9.mlp.up_proj"], texts())
    with pytest.raises(InvalidParameter, match="is a LlamaRMSNorm"):
        fit(tiny.llama(), ["model.norm"], texts())
