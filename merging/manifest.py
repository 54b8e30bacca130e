"""What `patch.json` may say, as a JSON schema that is published, and the parts of it that are not terms.

Those are the usage contract (what a patch needs to work), how it was made, its separable parts, and a base that is a
recipe. The schema is made from the term registry, so it follows every term. Never imports torch.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from adapterhub.merging.errors import InvalidPatch
from adapterhub.merging.json_schema import Schema, problem
from adapterhub.merging.patch import TrainingBase
from adapterhub.merging.quantised import quantisation_of
from adapterhub.merging.registry import Parameter, TermSpec
from adapterhub.merging.terms import terms

MANIFEST = "patch.json"
WEIGHTS = "patch.safetensors"
FORMAT = "adapterhub.patch"
FORMAT_VERSION = 1

SCHEMA_FILE = "patch.schema.json"
"""Name of the published schema in docs/."""

SHARED = "@shared"
"""What stands for a parameter's name in the names of tensors that several terms share."""


def _text(most: int = 1000) -> Schema:
    return {"type": "string", "maxLength": most}


def _texts(most: int = 10_000) -> Schema:
    return {"type": "array", "items": _text(), "maxItems": most}


def _object(properties: Schema, **more: Any) -> Schema:
    return {"type": "object", "properties": properties, "additionalProperties": False, **more}


_DIGEST = {"type": "string", "pattern": "^sha256:[0-9a-f]+$"}
_NAME = {"type": ["string", "null"], "maxLength": 1000}

CONTRACT: Schema = _object(
    {
        "chat_template": _text(100_000),
        "pattern": _text(10_000) | {"description": "the input with its holes, as LiST and PET write it"},
        "verbalizer": {"type": "object", "additionalProperties": _text(), "description": "label: word that stands for"},
        "indicator_tokens": _texts(),
        "invocation_tokens": _texts(),
        "label_map": {"type": "object", "additionalProperties": _text(), "propertyNames": {"pattern": "^[0-9]+$"}},
        "head": _text() | {"description": "module path of the head that the patch was trained with"},
        "sampling_rate": {"type": "integer", "minimum": 1, "maximum": 10_000_000},
        "added_tokens": _texts(100_000),
        "tokenizer_sha256": _text(100),
    }
)
"""What a patch needs to work, besides its base."""

TRAINING: Schema = _object(
    {
        "method": _text() | {"description": "SFT, DPO, PPO, self-play, ..."},
        "data": _texts(),
        "cost": {"type": "number", "minimum": 0},
        "currency": _text(3),
        "energy_kwh": {"type": "number", "minimum": 0},
        "hours": {"type": "number", "minimum": 0},
        "library": _text(),
        "seed": {"type": "integer"},
    }
)
"""How a patch was made."""

PARTS: Schema = {
    "type": "array",
    "maxItems": 100,
    "items": _object(
        {
            "name": _text(100),
            "sites": _texts(200_000) | {"description": "parameters whose terms are this part"},
            "path": _text() | {"description": "folder of a patch of its own, relative to this one"},
            "contract": CONTRACT,
            "summary": _text(),
        },
        required=["name"],
    ),
}
"""What can be had alone: ProMoT's prompt and its delta, LiST's adapter and its pattern."""

_BASE: Schema = {
    "type": "object",
    "properties": {
        **dict.fromkeys(("repo_id", "revision", "model_type", "config_sha256", "tokenizer_sha256", "dtype"), _NAME),
        "architectures": _texts(),
        "quantization": {"type": ["string", "object", "null"]},
        "tied": {"type": "array"},
        "recipe": _text(10_000) | {"description": "the base is no stored model but what this recipe makes"},
        "requires": {
            "type": "array",
            "maxItems": 100,
            "items": _object({"name": _text(), "digest": _DIGEST}, required=["name", "digest"]),
            "description": "patches that must be folded with this one, unless the base's values have them already",
        },
        "fingerprint": {
            "type": ["object", "null"],
            "properties": {
                "root": _NAME,
                "algo": _text(100),
                "params": {"type": "object", "additionalProperties": {"type": "string"}},
            },
        },
    },
}

RESERVED = frozenset({"id", "kind", "scale", "stats", "dtype", "shared", "delta_ref"})
"""Keys of a term in patch.json that are no options of its kind, unless the kind has one of that name."""


def _option(one: Parameter) -> Schema:
    types = {"float": "number", "int": "integer", "bool": "boolean", "str": "string"}
    found: dict[str, Any] = {"type": types[one.type], "description": one.help}
    if one.choices:
        found["enum"] = list(one.choices)
    if one.low is not None:
        found["minimum"] = one.low
    if one.high is not None:
        found["maximum"] = one.high
    return found


def _term_rule(spec: TermSpec) -> Schema:
    options = {one.name: _option(one) for one in spec.options}
    known = {**{key: {} for key in sorted(RESERVED)}, **options}
    return {
        "if": {"properties": {"kind": {"const": spec.name}}},
        "then": {"properties": known, "additionalProperties": False},
    }


@cache
def schema() -> Schema:
    """The JSON schema of `patch.json`, of patches that become weights and of those that work at run time."""
    term = {
        "type": "object",
        "required": ["id", "kind"],
        "properties": {
            "id": {"type": "string", "pattern": "^[A-Za-z0-9_]{1,64}$"},
            "kind": {"type": "string"},
            "scale": {"type": "number"},
            "stats": {
                "type": "object",
                "properties": {"nnz": {"type": "integer", "minimum": 0}, "fro": {"type": "number", "minimum": 0}},
            },
            "dtype": {"type": "string"},
            "shared": {"type": "object", "additionalProperties": {"type": "string", "pattern": r"^[A-Za-z0-9_]+\."}},
            "delta_ref": _DIGEST,
        },
        "allOf": [_term_rule(spec) for spec in terms().values()],
    }
    site = _object(
        {
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 32},
            "terms": {"type": "array", "items": term, "minItems": 1, "maxItems": 64},
            "sequence": _texts(64) | {"description": "ids of the terms that change W, in the order in which they act"},
            "layout": {"type": "string"},
            "tie": {"type": "string"},
        },
        required=["shape", "terms"],
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "patch.json, format version 1",
        **_object(
            {
                "format": {"const": FORMAT},
                "format_version": {"const": FORMAT_VERSION},
                "kind": _text(100),
                "effect": {"enum": ["additive", "affine", "replace", "runtime"]},
                "foldable": {"type": "boolean"},
                "base": _BASE,
                "sites": {"type": "object", "additionalProperties": site, "minProperties": 1},
                "runtime": {"type": "object"},
                "contract": CONTRACT,
                "training": TRAINING,
                "parts": PARTS,
                "provenance": {"type": "object"},
                "files": {
                    "type": "object",
                    "additionalProperties": {
                        "type": "object",
                        "properties": {
                            "size": {"type": "integer", "minimum": 0},
                            "sha256": {"type": "string"},
                        },
                        "required": ["sha256"],
                    },
                },
            },
            required=["format", "format_version", "kind", "files"],
        ),
    }


def check_manifest(manifest: Mapping[str, Any]) -> None:
    """Raises InvalidPatch unless the manifest is as the schema says."""
    found = problem(manifest, schema(), f"{MANIFEST}: ")
    if found is not None:
        raise InvalidPatch(found)


def training_base(manifest: Mapping[str, Any]) -> TrainingBase:
    """The base that a checked manifest names."""
    base = manifest.get("base") or {}
    fingerprint = base.get("fingerprint") or {}
    quantisation = base.get("quantization") or "none"
    if isinstance(quantisation, dict):  # as in a model's config.json
        quantisation = quantisation_of({"quantization_config": quantisation})
    return TrainingBase(
        name=base.get("repo_id"),
        revision=base.get("revision"),
        fingerprint=fingerprint.get("root"),
        quantisation="unknown" if "quantization" not in base else str(quantisation),
        parameters=fingerprint.get("params") or {},
        recipe=base.get("recipe"),
        requires={one["digest"]: one["name"] for one in base.get("requires") or ()},
    )


def usage(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Facts about use and origin of a checked manifest: contract, training and the names of its parts."""
    return {
        "contract": manifest.get("contract") or {},
        "training": manifest.get("training") or {},
        "parts": tuple(one["name"] for one in manifest.get("parts") or ()),
    }
