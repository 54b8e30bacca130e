"""What the patches of a recipe need to work besides their base: their usage contracts as one.

A native patch says it in patch.json. An ordinary adapter says it by a chat template beside it, which wins over the
base's: its trainer saved the one it was trained with. Never imports torch.
"""

import json
from collections.abc import Mapping
from typing import Any

from adapterhub.merging.checkpoint import Checkpoint, Folder
from adapterhub.merging.errors import BaseMismatch, InvalidPatch
from adapterhub.merging.folders import join, read_json
from adapterhub.merging.patch import Patch
from adapterhub.merging.recipes.canonical import MODEL, Input
from adapterhub.merging.recipes.nodes import Ref

TOKENIZER = "tokenizer.json"
TEMPLATE = "chat_template.jinja"
TOKENIZER_CONFIG = "tokenizer_config.json"
MAX_TEMPLATE_BYTES = 1 << 20
"""Longest chat template that is read."""


def contract_of(patch: Patch, one: Input) -> Mapping[str, Any]:
    """What one patch says of its use, by the keys of patch.json's contract; empty where it says nothing."""
    if patch.facts.contract or one.kind == MODEL:
        return patch.facts.contract
    template = _template(one.folder, one.path)
    return {} if template is None else {"chat_template": template}


def joined(read: Mapping[Ref, Patch], inputs: Mapping[Ref, Input], base: Checkpoint) -> Mapping[str, Any]:
    """The contracts of several patches as one, by key, but for the tokenizer's digest, which is the base's own.

    Raises BaseMismatch, naming both patches, where two say different things of one key, as a model is used in one way,
    and for a tokenizer that is not the base's.
    """
    found: dict[str, Any] = {}
    owners: dict[str, str] = {}
    for ref, patch in read.items():
        for key, value in contract_of(patch, inputs[ref]).items():
            if key in found and found[key] != value:
                raise BaseMismatch(
                    f"{inputs[ref].name} and {owners[key]} each have a {key} of their own: {_short(value)} and "
                    f"{_short(found[key])}; one model has one, so serve them apart, or give both the same"
                )
            found[key], owners[key] = value, inputs[ref].name
    wanted = found.pop("tokenizer_sha256", None)
    if wanted is not None and wanted.removeprefix("sha256:") != _tokenizer_sha256(base):
        raise BaseMismatch(
            f"{owners['tokenizer_sha256']}: was trained with the {TOKENIZER} of sha256 {wanted}, and that of "
            f"{base.name} is {_tokenizer_sha256(base) or 'missing'}"
        )
    return found


def base_template(base: Checkpoint) -> str | None:
    """The chat template that the base itself has."""
    return None if base.folder is None else _template(base.folder, base.prefix)


def _tokenizer_sha256(base: Checkpoint) -> str | None:
    file = join(base.prefix, TOKENIZER)
    if base.folder is None or file not in base.folder.names():
        return None
    return base.folder.digest(file).removeprefix("sha256:")


def _template(folder: Folder, path: str) -> str | None:
    """The chat template beside an adapter: its own file, else the one in its tokenizer's configuration."""
    file = join(path, TEMPLATE)
    if file in folder.names():
        if folder.size(file) > MAX_TEMPLATE_BYTES:
            raise InvalidPatch(f"{file}: {folder.size(file)} bytes; at most {MAX_TEMPLATE_BYTES} are read")
        return folder.read(file).decode(errors="replace")
    file = join(path, TOKENIZER_CONFIG)
    if file not in folder.names():
        return None
    template = read_json(folder, file).get("chat_template")
    return template if isinstance(template, str) else None


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:60] + "…"
