"""What a recipe says of the result's tokenizer: whose vocabulary it has, which row single tokens get, how it chats.

Source: mergekit 0.1.5 `tokenizer_source`, `tokenizer` and `chat_template`, whose meaning these settings have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from adapterhub.merging.errors import InvalidParameter
from adapterhub.merging.recipes.nodes import Ref

MAX_PADDING = 1 << 16
"""Largest multiple to which the number of rows is rounded up."""


@dataclass(frozen=True)
class TokenRow:
    """Which row one token gets where a model lacks it.

    model: whose row; None with is_zero, or for the rule that tokens without a setting follow. token, token_id: the
    token of that model to take it from, at most one of them; the same token where neither is given. is_forced: models
    that have the token get this row too.
    """

    model: Ref | None = None
    token: str | None = None
    token_id: int | None = None
    is_zero: bool = False
    is_forced: bool = False

    def __post_init__(self) -> None:
        if self.token is not None and self.token_id is not None:
            raise InvalidParameter(f"tokenizer: token {self.token!r} and token_id {self.token_id} are given; name one")
        if self.model is None and (self.token is not None or self.token_id is not None):
            raise InvalidParameter("tokenizer: a token's row is taken from a model; name the model")
        if self.is_zero and self.model is not None:
            raise InvalidParameter(f"tokenizer: a row is zero or taken from {self.model}, not both")
        if self.is_forced and not self.is_zero and self.model is None:
            raise InvalidParameter("tokenizer: force needs a source: a model, or zero")


@dataclass(frozen=True)
class TokenizerPolicy:
    """The tokenizer setting of a recipe.

    source: whose vocabulary the result has: "base", a model's, or "union", the base's with what the others have more;
    None leaves vocabularies alone, and all must have as many rows. tokens: settings of single tokens, which are added
    where the vocabulary lacks them. pad_to_multiple_of: what the number of rows is rounded up to. chat_template:
    "auto", a built-in's name, or Jinja text; None keeps the source's. prefers_base: whether a token that several models
    have and another lacks gets the base's row where the base has one; False averages all, as mergekit does where no
    base_model is named.
    """

    source: Ref | Literal["union", "base"] | None = None
    tokens: tuple[tuple[str, TokenRow], ...] = ()
    pad_to_multiple_of: int | None = None
    chat_template: str | None = None
    prefers_base: bool = True

    def __post_init__(self) -> None:
        pad = self.pad_to_multiple_of
        if pad is not None and not (type(pad) is int and 1 <= pad <= MAX_PADDING):
            raise InvalidParameter(
                f"tokenizer: pad_to_multiple_of is {pad!r}; a whole number to {MAX_PADDING} expected"
            )
        if self.source is None and (self.tokens or pad is not None):
            raise InvalidParameter("tokenizer: tokens and pad_to_multiple_of need a source: union, base or a model")
        if any(not token for token, _ in self.tokens) or len(dict(self.tokens)) < len(self.tokens):
            raise InvalidParameter("tokenizer: a token is empty, or has two settings")

    def references(self) -> tuple[Ref, ...]:
        """The models it names, each once."""
        named = [self.source] if isinstance(self.source, Ref) else []
        named += [row.model for _, row in self.tokens if row.model is not None]
        return tuple(dict.fromkeys(named))

    def renamed(self, names: Mapping[Ref, Ref]) -> TokenizerPolicy:
        """The same policy, each model under the name that stands for it."""
        tokens = [
            (token, row if row.model is None else replace(row, model=names[row.model])) for token, row in self.tokens
        ]
        source = names[self.source] if isinstance(self.source, Ref) else self.source
        return replace(self, source=source, tokens=tuple(tokens))

    @classmethod
    def of_json(cls, value: Mapping[str, Any], models: Sequence[Ref]) -> TokenizerPolicy:
        """The policy that `to_json` wrote, of models by their numbers.

        Raises InvalidParameter, and KeyError, IndexError or TypeError, for what it never writes.
        """
        rows = []
        for token, row in value["tokens"].items():
            model = None if row["model"] is None else models[row["model"]]
            rows.append((token, TokenRow(model, row["token"], row["token_id"], row["zero"], row["force"])))
        source = value["source"]
        if not isinstance(source, int) and source not in ("union", "base", None):
            raise InvalidParameter(f"tokenizer: source is {source!r}; union, base or a model's number expected")
        return cls(
            source=models[source] if isinstance(source, int) else source,
            tokens=tuple(rows),
            pad_to_multiple_of=value["pad_to_multiple_of"],
            chat_template=value["chat_template"],
            prefers_base=bool(value["prefers_base"]),
        )

    def to_json(self, numbers: Mapping[Ref, int]) -> dict[str, Any]:
        """The policy as JSON, models by their numbers in a canonical recipe."""
        rows = {
            token: {
                "model": None if row.model is None else numbers[row.model],
                "token": row.token,
                "token_id": row.token_id,
                "zero": row.is_zero,
                "force": row.is_forced,
            }
            for token, row in self.tokens
        }
        return {
            "source": numbers[self.source] if isinstance(self.source, Ref) else self.source,
            "tokens": rows,
            "pad_to_multiple_of": self.pad_to_multiple_of,
            "chat_template": self.chat_template,
            "prefers_base": self.prefers_base,
        }
