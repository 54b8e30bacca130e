"""What a recipe file says of the tokenizer: tokenizer_source or tokenizer, and chat_template.

Source: mergekit 0.1.5 `tokenizer/config.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapterhub.merging.errors import InvalidParameter, RecipeFileError
from adapterhub.merging.recipes.building import Model
from adapterhub.merging.recipes.documents import shown
from adapterhub.merging.recipes.fields import check_keys, word_of
from adapterhub.merging.recipes.names import Names
from adapterhub.merging.recipes.tokenizer import TokenizerPolicy, TokenRow


class TokenizerSettings:
    """Reads the setting of one document."""

    def __init__(self, document: Mapping[str, Any], names: Names) -> None:
        self._document = document
        self._names = names

    def policy(self) -> TokenizerPolicy | None:
        """The file's setting, None without one. Raises RecipeFileError."""
        source, told = self._document.get("tokenizer_source"), self._document.get("tokenizer")
        template = self._template()
        if source is not None and told is not None:
            raise RecipeFileError("tokenizer", "tokenizer_source is given too; leave out one of them")
        if source is None and told is None and template is None:
            return None
        if told is None:
            found = None if source is None else self._vocabulary(source, "tokenizer_source")
            return self._policy("tokenizer_source", source=found, chat_template=template)
        if not isinstance(told, Mapping):
            raise RecipeFileError("tokenizer", f"is {shown(told)}; expected source, tokens, pad_to_multiple_of")
        check_keys(told, ("source", "tokens", "pad_to_multiple_of"), "tokenizer")
        tokens = told.get("tokens") or {}
        if not isinstance(tokens, Mapping):
            raise RecipeFileError("tokenizer.tokens", f"is {shown(tokens)}; expected settings by token")
        rows = tuple((str(token), self._row(one, f"tokenizer.tokens.{token}")) for token, one in tokens.items())
        return self._policy(
            "tokenizer",
            source=self._vocabulary(told.get("source", "union"), "tokenizer.source"),
            tokens=rows,
            pad_to_multiple_of=told.get("pad_to_multiple_of"),
            chat_template=template,
        )

    def _policy(self, where: str, **told: Any) -> TokenizerPolicy:
        try:
            return TokenizerPolicy(**told, prefers_base=self._document.get("base_model") is not None)
        except InvalidParameter as error:
            raise RecipeFileError(where, str(error)) from error

    def _vocabulary(self, value: Any, where: str) -> Any:
        """ "union", "base" or a model: the base is called so where the file names it outright."""
        if value in ("union", "base"):
            return value
        model, base = self._names.alone(value, where), self._document.get("base_model")
        return "base" if base is not None and Model(model) == self._names.model(base, "base_model") else model

    def _row(self, one: Any, where: str) -> TokenRow:
        if not isinstance(one, Mapping):
            raise RecipeFileError(where, f"is {shown(one)}; expected source, force")
        check_keys(one, ("source", "force"), where)
        source, is_forced = one.get("source"), one.get("force", False)
        if not isinstance(is_forced, bool):
            raise RecipeFileError(f"{where}.force", f"is {shown(is_forced)}; expected true or false")
        told: dict[str, Any] = {}
        if isinstance(source, Mapping) and "kind" in source:
            check_keys(source, ("kind", "model", "token", "token_id"), f"{where}.source")
            if source["kind"] not in ("zero", "model_token"):
                raise RecipeFileError(
                    f"{where}.source.kind", f"{shown(source['kind'])} is neither zero nor model_token"
                )
            told = {key: source[key] for key in ("token", "token_id") if key in source}
            told["is_zero"] = source["kind"] == "zero"
            source = source.get("model")
        if source is not None:
            told["model"] = self._names.alone(source, f"{where}.source")
        try:
            return TokenRow(**told, is_forced=is_forced)
        except InvalidParameter as error:
            raise RecipeFileError(where, str(error)) from error

    def _template(self) -> str | None:
        value = self._document.get("chat_template")
        return None if value is None else word_of(value, "chat_template")


def lines_of(policy: TokenizerPolicy) -> dict[str, Any]:
    """A setting as a recipe file has it, by key."""
    lines: dict[str, Any] = {"chat_template": policy.chat_template}
    if policy.source is None:
        return lines
    source = policy.source if isinstance(policy.source, str) else policy.source.address
    tokens = {token: _row_lines(row) for token, row in policy.tokens}
    told = {"source": source, "tokens": tokens or None, "pad_to_multiple_of": policy.pad_to_multiple_of}
    return lines | {"tokenizer": {key: value for key, value in told.items() if value is not None}}


def _row_lines(row: TokenRow) -> dict[str, Any]:
    source: Any = None if row.model is None else row.model.address
    if row.is_zero:
        source = {"kind": "zero"}
    elif row.token is not None or row.token_id is not None:
        told = {"kind": "model_token", "model": source, "token": row.token, "token_id": row.token_id}
        source = {key: value for key, value in told.items() if value is not None}
    return {"source": source, "force": row.is_forced}
