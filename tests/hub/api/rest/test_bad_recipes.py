"""Recipes that nobody can merge by: each is refused at once, by every way to send one, and says what to do."""

import json

import numpy as np
import pytest
from safetensors.numpy import save

from adapterhub.hub.services.commits import AddRegular
from tests.hub.api.rest.conftest import Site
from tests.hub.api.rest.test_merges import push, stocked
from tests.hub.services.samples import SITE, lora, model

__all__ = ["stocked"]

WAYS = ("/api/merges", "/api/recipes/parse", "/api/recipes/explain", "/api/recipes")


def refused(site: Site, way: str, expression: str) -> tuple[int, str, str]:
    """Status, code and sentence of a refusal."""
    body = {"expression": expression} | ({"name": "maria/x"} if way == "/api/recipes" else {})
    answer = site.client().post(way, json=body)
    assert len(answer.content) < 3000
    return answer.status_code, answer.json()["code"], answer.json()["detail"]


@pytest.mark.parametrize("way", WAYS)
def test_what_is_too_long_or_too_deep_is_refused_at_once(way: str, stocked: Site) -> None:
    status, code, said = refused(stocked, way, "maria/base + " + "maria/code + " * 800_000 + "maria/code")
    assert (status, code) == (400, "invalid_request")
    assert "100000 characters" in said
    deep = {
        "(" * 10_000 + "maria/base": "nested deeper than 64",
        "ties(" * 3_000 + "maria/base": "nested deeper than 64",
        "maria/base + " + " + ".join(["maria/code"] * 3000): "has 3001 terms; at most 2048",
    }
    for expression, told in deep.items():
        assert refused(stocked, way, expression)[:2] == (400, "recipe_too_large")
        assert told in refused(stocked, way, expression)[2]


@pytest.mark.parametrize("way", [way for way in WAYS if way != "/api/recipes/parse"])
@pytest.mark.parametrize(
    ("expression", "code", "said"),
    [
        ("tise(maria/base; maria/code)", "unknown_method", "did you mean ties?"),
        ("dare_teis(maria/base; maria/code)", "unknown_method", "did you mean dare_ties?"),
        ("xyzzy(maria/base; maria/code)", "unknown_method", "known are "),
        ("ties(maria/base; maria/code, densty=0.2)", "invalid_parameter", "did you mean density?"),
        ("ties(maria/base; maria/code, xyzzy=0.2)", "invalid_parameter", "it has density"),
        ("ties(maria/base; maria/code, density=0)", "invalid_parameter", "expected float in (0, 1]"),
        ("ties(maria/base; maria/code, elect=most)", "invalid_parameter", "elect is 'most'; expected "),
    ],
)
def test_a_near_method_or_parameter_is_named(way: str, expression: str, code: str, said: str, stocked: Site) -> None:
    status, found, told = refused(stocked, way, expression)
    assert (status, found) == (422, code)
    assert said in told


def with_vocabulary(rows: int) -> list[AddRegular]:
    """A model with an embedding of that many tokens."""
    config, weights = model()
    numbers = np.random.default_rng(0)
    tensors = {
        SITE.format(layer=layer, module=name): numbers.standard_normal((8, 8)).astype("f4")
        for layer in (0, 1)
        for name in ("q_proj", "v_proj")
    } | {"model.embed_tokens.weight": numbers.standard_normal((rows, 8)).astype("f4")}
    told = json.loads(config.content) | {"vocab_size": rows}
    return [
        AddRegular(config.path, json.dumps(told).encode()),
        AddRegular(weights.path, save(tensors, {"format": "pt"})),
    ]


@pytest.mark.parametrize("way", ["/api/merges", "/api/recipes/explain", "/api/recipes"])
def test_shapes_that_do_not_fit_are_told_with_tensor_both_sizes_and_a_cure(way: str, site: Site) -> None:
    push(site, "maria/wide", model(16))
    push(site, "maria/base", with_vocabulary(10))
    push(site, "maria/other", with_vocabulary(12))
    push(site, "maria/code", lora("maria/base"))
    wanted = {
        "maria/wide + maria/code": (SITE.format(layer=0, module="q_proj"), "(8, 8)", "(16, 16)", "port the patch"),
        "linear(maria/base; maria/other)": ("model.embed_tokens.weight", "(12, 8)", "(10, 8)", "; "),
        "slerp(maria/base; maria/other)": ("model.embed_tokens.weight", "(12, 8)", "(10, 8)", "; "),
    }
    for expression, told in wanted.items():
        status, code, said = refused(site, way, expression)
        assert (status, code) == (422, "shape_mismatch")
        assert [word for word in told if word not in said] == []
    assert "merge" not in {job["kind"] for job in site.client().get("/api/jobs").json()["items"]}
