"""Models as recipe files name them: repositories, folders, a LoRA on top, and the references that stand for them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from adapterhub.merging.errors import ExpressionError, RecipeFileError
from adapterhub.merging.recipes.building import Model
from adapterhub.merging.recipes.documents import shown
from adapterhub.merging.recipes.fields import check_keys, word_of
from adapterhub.merging.recipes.nodes import Ref

_LOCAL = re.compile(r"[./~\\]|.*\\|[A-Za-z]:[/\\]")
"""How the name of a folder begins that is no repository: ./x, ../x, /x, ~/x, C:/x, or with a backslash anywhere."""

_MOST_NAME = 500
"""Longest name of a model."""


class Names:
    """The models of one file. folders: local folders by the names that stand for them; notes: what has no effect."""

    def __init__(self) -> None:
        self._refs: dict[str, Ref] = {}
        self.folders: dict[Ref, str] = {}
        self.notes: list[str] = []

    def model(self, value: Any, where: str) -> Model:
        """The model that a name, or mergekit's mapping of one, stands for."""
        if isinstance(value, Mapping):
            check_keys(value, ("model", "lora", "override_architecture"), where)
            if value.get("override_architecture") is not None:
                self.notes.append(f"{where}.override_architecture has no effect: tensors are matched by their names")
            if "model" not in value:
                raise RecipeFileError(where, "names no model")
            lora = value.get("lora")
            named = self._ref(_path(value["model"], f"{where}.model"), where)
            return Model(named, None if lora is None else self._ref(_path(lora, f"{where}.lora"), where))
        parts = word_of(value, where).split("+")
        if len(parts) > 2:
            raise RecipeFileError(where, f"{shown(value)}: a model and one LoRA are written NAME+LORA")
        return Model(*(self._ref(part.strip(), where) for part in parts))

    def _ref(self, text: str, where: str) -> Ref:
        if text not in self._refs:
            self._refs[text] = self._new_ref(text, where)
        return self._refs[text]

    def _new_ref(self, text: str, where: str) -> Ref:
        if len(text) > _MOST_NAME:
            raise RecipeFileError(where, f"a name of {len(text)} characters; at most {_MOST_NAME} are read")
        if text.count("@") > 1:
            raise RecipeFileError(where, f"{text!r}: one revision is written NAME@REVISION")
        if not _LOCAL.match(text):
            try:
                named = Ref.of(text)
            except ExpressionError as error:
                raise RecipeFileError(where, f"{error.problem}, or a folder such as ./model") from error
            if named in self.folders:
                raise RecipeFileError(where, f"{text!r} also stands for the folder {self.folders[named]}; rename that")
            return named
        ref = _local_ref(text, {*self._refs.values()})
        self.folders[ref] = text
        return ref

    def alone(self, value: Any, where: str) -> Ref:
        """A model without a LoRA. Raises RecipeFileError."""
        model = self.model(value, where)
        if model.lora is not None:
            raise RecipeFileError(where, f"{shown(value)}: a model is named here without a LoRA")
        return model.ref


def _path(value: Any, where: str) -> str:
    """The text of a model's path: itself, or mergekit's mapping with path and revision."""
    if not isinstance(value, Mapping):
        return word_of(value, where)
    check_keys(value, ("path", "revision"), where)
    path, revision = (value.get(key) for key in ("path", "revision"))
    return word_of(path, f"{where}.path") + ("" if revision is None else f"@{word_of(revision, f'{where}.revision')}")


def _local_ref(text: str, taken: Iterable[Ref]) -> Ref:
    """A name for a folder, after its last part."""
    last = re.split(r"[/\\]", text.rstrip("/\\"))[-1]
    name = re.sub(r"[^A-Za-z0-9._-]", "-", last).strip(".-") or "model"
    names = {ref.name for ref in taken}
    number = 2
    found = name
    while found in names:
        found, number = f"{name}-{number}", number + 1
    return Ref(found)
