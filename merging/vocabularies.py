"""The vocabulary of a merge: which tokens the result has, and where each of its rows comes from in each model.

Its meaning is mergekit's; its order is not left to chance: further tokens come model by model in the recipe's order,
and within a model by their ids. Never imports torch.
Source: mergekit 0.1.5 `tokenizer/build.py` and `tokenizer/embed.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adapterhub.merging.errors import InvalidParameter
from adapterhub.merging.recipes.nodes import Ref
from adapterhub.merging.recipes.tokenizer import TokenizerPolicy, TokenRow
from adapterhub.merging.tokenizers import AddedToken, Tokenizer, numbered, within

SHOWN = 20
"""Tokens that a report names one by one."""

Filling = tuple[tuple[Ref, int], ...]
"""Rows, each of a model, whose mean a row is; () for zero."""


@dataclass(frozen=True)
class Speaker:
    """A model with its tokenizer. rows: of its tables. is_merged: False for one that only a setting takes from."""

    tokenizer: Tokenizer
    rows: int
    is_merged: bool = True

    def row(self, token: str) -> int:
        """The row of a token, -1 where it has none."""
        number = self.tokenizer.ids.get(token, -1)
        return number if number < self.rows else -1


@dataclass(frozen=True)
class Vocabulary:
    """What the result's tokens are, and where its rows come from.

    source: the model whose tokenizer it is, `tokenizer`, without tokens that have no row there. more: added to it.
    ids: of all tokens, ascending. rows: of the result's tables, which are `size` and padding. maps: for each model and
    each id below `size` the model's own row, -1 for none or a forced one. fills: what each id gets for which a merged
    model has -1.
    """

    source: Ref
    tokenizer: Tokenizer
    stripped: tuple[str, ...]
    more: tuple[AddedToken, ...]
    ids: Mapping[str, int]
    rows: int
    maps: Mapping[Ref, tuple[int, ...]]
    fills: Mapping[int, Filling]

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return max(self.ids.values(), default=-1) + 1

    @property
    def is_new(self) -> bool:
        """Whether tokens differ from those of the source's files."""
        return bool(self.stripped or self.more)

    def moves(self, ref: Ref, rows: int) -> bool:
        """Whether a model's table of so many rows is changed at all."""
        return self.rows != rows or self.maps[ref] != tuple(range(rows))


def vocabulary_of(policy: TokenizerPolicy, base: Ref, speakers: Mapping[Ref, Speaker]) -> Vocabulary:
    """The vocabulary that a policy asks for. speakers: every model of the recipe, the base first.

    Raises InvalidParameter for a setting that names a token its model does not have.
    """
    source = policy.source if isinstance(policy.source, Ref) else base
    whole = speakers[source].tokenizer
    tokenizer = within(whole, speakers[source].rows)
    more = list(_further(tokenizer, speakers)) if policy.source == "union" else []
    there = tokenizer.ids.keys() | {one.content for one in more}
    more += [AddedToken(token) for token, _ in policy.tokens if token not in there]
    ids = numbered(tokenizer, more)
    size = max(ids.values(), default=-1) + 1
    maps = {ref: _map(one, ids, size, tokenizer) for ref, one in speakers.items()}
    fills = _fills(policy, base, speakers, ids, maps)
    forced = {ids[token] for token, row in policy.tokens if row.is_forced}
    multiple = policy.pad_to_multiple_of or 1
    return Vocabulary(
        source=source,
        tokenizer=tokenizer,
        stripped=tuple(token for token in whole.ids if token not in tokenizer.ids),
        more=tuple(more),
        ids=ids,
        rows=-(-size // multiple) * multiple,
        maps={ref: _without(one, forced) for ref, one in maps.items()},
        fills=fills,
    )


def _further(base: Tokenizer, speakers: Mapping[Ref, Speaker]) -> Iterator[AddedToken]:
    """What a union adds to the base: tokens of other merged models, then added tokens, of which the first counts."""
    plain: dict[str, None] = {}
    added: dict[str, AddedToken] = dict(base.added)
    for one in (one for one in speakers.values() if one.is_merged):
        for token in one.tokenizer.ids:
            if one.row(token) < 0:
                continue
            if token in one.tokenizer.added:
                added.setdefault(token, one.tokenizer.added[token])
            else:
                plain[token] = None
    yield from (AddedToken(token) for token in plain if token not in base.ids and token not in added)
    yield from (one for token, one in added.items() if token not in base.added)


def _map(one: Speaker, ids: Mapping[str, int], size: int, source: Tokenizer) -> tuple[int, ...]:
    """The model's own row for each id. Ids without a token stay where they are in models with the same vocabulary."""
    found = [-1] * size
    for token, number in ids.items():
        if found[number] < 0:
            found[number] = one.row(token)
    if len(set(ids.values())) < size and within(one.tokenizer, one.rows).ids == source.ids:
        named = set(ids.values())
        for number in range(min(size, one.rows)):
            found[number] = number if number not in named else found[number]
    return tuple(found)


def _without(rows: tuple[int, ...], forced: set[int]) -> tuple[int, ...]:
    return tuple(-1 if number in forced else row for number, row in enumerate(rows)) if forced else rows


def _fills(
    policy: TokenizerPolicy,
    base: Ref,
    speakers: Mapping[Ref, Speaker],
    ids: Mapping[str, int],
    maps: Mapping[Ref, Sequence[int]],
) -> Mapping[int, Filling]:
    """What each id gets that a merged model lacks, or that is forced."""
    told = {ids[token]: (token, row) for token, row in policy.tokens}
    merged = [ref for ref, one in speakers.items() if one.is_merged]
    others = [ref for ref in speakers if ref not in merged]
    found: dict[int, Filling] = {}
    for number in range(len(maps[base])):
        token, setting = told.get(number, ("", TokenRow()))
        having = [ref for ref in merged if maps[ref][number] >= 0]
        if len(having) == len(merged) and not setting.is_forced:
            continue
        if setting.is_zero:
            found[number] = ()
        elif setting.model is not None:
            found[number] = ((setting.model, _told_row(token, setting, speakers[setting.model])),)
        else:
            having = having or [ref for ref in others if maps[ref][number] >= 0][:1]
            chosen = [base] if policy.prefers_base and base in having else having
            found[number] = tuple((ref, maps[ref][number]) for ref in chosen)
    return found


def _told_row(token: str, setting: TokenRow, model: Speaker) -> int:
    wanted = setting.token or token
    row = model.row(wanted) if setting.token_id is None else setting.token_id
    if 0 <= row < model.rows:
        return row
    what = repr(wanted) if setting.token_id is None else f"id {setting.token_id}"
    raise InvalidParameter(
        f"tokenizer: {token!r} shall have the row of {what} of {setting.model}, which has none such among its "
        f"{model.rows}; name a token it has, or zero"
    )


def report(found: Vocabulary, speakers: Mapping[Ref, Speaker], asked: str) -> dict[str, Any]:
    """Everything that is done to vocabularies, as JSON values: what is added, taken, averaged, zeroed and left out."""
    taken = Counter(str(one[0][0]) for one in found.fills.values() if len(one) == 1)
    new = [one.content for one in found.more if one.content not in found.tokenizer.ids]
    lost = dict.fromkeys(
        token for one in speakers.values() if one.is_merged for token in one.tokenizer.ids if token not in found.ids
    )
    return {
        "source": asked,
        "tokenizer_of": str(found.source),
        "tokens": len(found.ids),
        "rows": found.rows,
        "padding_rows": found.rows - found.size,
        "added": _named(new),
        "left_out": _named(list(lost)),
        "without_row": _named(found.stripped),
        "filled": {
            "taken": dict(sorted(taken.items())),
            "averaged": sum(len(one) > 1 for one in found.fills.values()),
            "zero": sum(not one for one in found.fills.values()),
        },
        "models": {str(ref): _of_model(found.maps[ref], one) for ref, one in speakers.items()},
    }


def _of_model(rows: Sequence[int], one: Speaker) -> dict[str, int]:
    kept = {row for row in rows if row >= 0}
    return {
        "rows": one.rows,
        "kept": len(kept),
        "lacking": sum(row < 0 for row in rows),
        "trimmed": one.rows - len(kept),
    }


def _named(tokens: Sequence[str]) -> dict[str, Any]:
    return {"count": len(tokens), "tokens": list(tokens[:SHOWN])}
