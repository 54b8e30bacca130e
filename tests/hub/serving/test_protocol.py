import json
from dataclasses import asdict
from pathlib import Path

from adapterhub.errors import AdapterHubError
from adapterhub.hub.errors import EngineUnavailable, RepoNotFound, UnfitPatch
from adapterhub.hub.serving.protocol import (
    Called,
    Delta,
    Event,
    Finished,
    Generate,
    Sampling,
    Source,
    Started,
    TokenLogprob,
    VariantSpec,
    error_from_json,
    error_to_json,
    event_from_json,
    event_to_json,
)
from adapterhub.merging.folders import MappedFolder


def source(**digests: str) -> Source:
    files = {name.replace("_", "."): (Path("/blobs") / name, digest, 1) for name, digest in digests.items()}
    return Source("demo/base", "demo/base@" + "0" * 40, "model", MappedFolder(files))


def test_specs_events_and_requests_survive_json() -> None:
    spec = VariantSpec("sha256:1", "demo/base", (source(config_json="sha256:a"),))
    assert VariantSpec.from_json(json.loads(json.dumps(spec.to_json()))).to_json() == spec.to_json()
    events: list[Event] = [
        Started(3, "ah-1", 2.5),
        Delta(0, "é", (TokenLogprob("é", -0.5, (("é", -0.5),)),)),
        Called(0, 1, "weather", "{}"),
        Finished(0, "stop", 1),
    ]
    for event in events:
        read = event_from_json(json.loads(json.dumps(event_to_json(event))))
        assert read is not None
        assert json.dumps(event_to_json(read)) == json.dumps(event_to_json(event))
    tools = ({"type": "function", "function": {"name": "weather"}},)
    sampling = Sampling(logit_bias={7: 1.0})
    asked = Generate(prompt="a", stop=("b",), sampling=sampling, tools=tools, must_call=("weather",))
    assert Generate.from_json(json.loads(json.dumps(asdict(asked)))) == asked


def test_a_base_is_known_by_the_files_it_is_loaded_from() -> None:
    first = VariantSpec("1", "x", (source(model_safetensors="sha256:a", README_md="sha256:b"),))
    same = VariantSpec("2", "y", (source(model_safetensors="sha256:a", README_md="sha256:c"),))
    other = VariantSpec("3", "z", (source(model_safetensors="sha256:d", README_md="sha256:b"),))
    assert first.base_digest == same.base_digest != other.base_digest


def test_a_refusal_keeps_its_class_and_text_and_an_unknown_one_is_the_engines() -> None:
    refused = error_from_json(error_to_json(UnfitPatch("q_proj: too wide")))
    assert (type(refused), str(refused)) == (UnfitPatch, "q_proj: too wide")
    unknown: AdapterHubError = RepoNotFound("a/b")
    assert type(error_from_json(error_to_json(unknown))) is EngineUnavailable
