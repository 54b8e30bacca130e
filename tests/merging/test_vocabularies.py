"""The maps of a merge's vocabulary: what holds for any models, tokens, and settings."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.merging.checkpoint import LocalFolder
from adapterhub.merging.recipes.nodes import Ref
from adapterhub.merging.recipes.tokenizer import TokenizerPolicy, TokenRow
from adapterhub.merging.tokenizers import AddedToken, Tokenizer
from adapterhub.merging.vocabularies import Speaker, Vocabulary, report, vocabulary_of

BASE, OTHER, THIRD = Ref("base"), Ref("other"), Ref("third")
TOKENS = st.lists(st.text("abcd", min_size=1, max_size=2), min_size=1, max_size=8, unique=True)


def tokenizer(tokens: Sequence[str], added: Sequence[str] = ()) -> Tokenizer:
    ids = {token: number for number, token in enumerate(tokens)}
    vocab = {token: number for token, number in ids.items() if token not in added}
    entries = [{"id": ids[token], "content": token, "special": True} for token in added]
    parsed = {"tokenizer.json": {"model": {"type": "BPE", "vocab": vocab, "merges": []}, "added_tokens": entries}}
    marked = {token: AddedToken(token, special=True) for token in added}
    return Tokenizer("a/model", LocalFolder(Path()), "", ids, marked, "tokenizer.json", len(ids), parsed)


@st.composite
def speakers(draw: st.DrawFn) -> dict[Ref, Speaker]:
    """Two or three models with tokens in common, some added, and with fewer or more rows than tokens."""
    found = {}
    for ref in (BASE, OTHER, THIRD)[: draw(st.integers(2, 3))]:
        tokens = draw(TOKENS)
        added = draw(st.lists(st.sampled_from(tokens), max_size=2, unique=True))
        found[ref] = Speaker(tokenizer(tokens, added), max(1, len(tokens) + draw(st.integers(-2, 3))))
    return found


def rows_of(one: Speaker) -> Mapping[str, int]:
    return {token: number for token, number in one.tokenizer.ids.items() if number < one.rows}


def check(found: Vocabulary, given: Mapping[Ref, Speaker]) -> None:
    """Ids are dense, maps lead each token to its own row, and every gap is filled from rows that are there."""
    assert sorted(found.ids.values()) == list(range(found.size))
    for ref, rows in found.maps.items():
        own = rows_of(given[ref])
        assert len(rows) == found.size
        for token, number in found.ids.items():
            assert rows[number] in (own.get(token, -1), -1 if number in found.fills else own.get(token, -1))
            assert rows[number] >= 0 or number in found.fills
    for filling in found.fills.values():
        assert all(0 <= row < given[ref].rows for ref, row in filling)
    assert json.loads(json.dumps(report(found, given, "union")))["tokens"] == found.size


@settings(deadline=None)
@given(given=speakers())
def test_a_union_keeps_every_token_and_the_base_s_ids(given: dict[Ref, Speaker]) -> None:
    found = vocabulary_of(TokenizerPolicy("union"), BASE, given)
    check(found, given)
    assert found.ids.keys() == set().union(*(rows_of(one) for one in given.values()))
    assert found.ids.items() >= rows_of(given[BASE]).items()
    for ref, one in given.items():
        assert {row for row in found.maps[ref] if row >= 0} == set(rows_of(one).values())
    assert all(found.fills.values())


@settings(deadline=None)
@given(given=speakers(), data=st.data())
def test_a_model_s_vocabulary_is_that_model_s_and_its_rows_stay(given: dict[Ref, Speaker], data: st.DataObject) -> None:
    source = data.draw(st.sampled_from(list(given)))
    found = vocabulary_of(TokenizerPolicy(source), BASE, given)
    check(found, given)
    assert found.ids == rows_of(given[source])
    assert found.maps[source] == tuple(range(found.size))


@settings(deadline=None)
@given(given=speakers())
def test_one_vocabulary_for_all_is_that_vocabulary(given: dict[Ref, Speaker]) -> None:
    one = given[BASE]
    same = {ref: Speaker(one.tokenizer, len(one.tokenizer.ids)) for ref in given}
    found = vocabulary_of(TokenizerPolicy("union"), BASE, same)
    assert not found.is_new
    assert not found.fills
    assert not any(found.moves(ref, speaker.rows) for ref, speaker in same.items())


@settings(deadline=None)
@given(given=speakers(), multiple=st.integers(1, 9))
def test_rows_are_rounded_up(given: dict[Ref, Speaker], multiple: int) -> None:
    found = vocabulary_of(TokenizerPolicy("union", pad_to_multiple_of=multiple), BASE, given)
    assert found.rows % multiple == 0
    assert 0 <= found.rows - found.size < multiple


def three(*, prefers_base: bool = True) -> tuple[dict[Ref, Speaker], Vocabulary]:
    """A base of a b, another of b c d, a third of c d e."""
    given = {
        ref: Speaker(tokenizer(tokens), len(tokens)) for ref, tokens in ((BASE, "ab"), (OTHER, "bcd"), (THIRD, "cde"))
    }
    return given, vocabulary_of(TokenizerPolicy("union", prefers_base=prefers_base), BASE, given)


def test_a_missing_row_is_the_base_s_else_the_only_one_else_the_mean() -> None:
    _, found = three()
    assert found.ids == {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4}
    assert found.maps == {BASE: (0, 1, -1, -1, -1), OTHER: (-1, 0, 1, 2, -1), THIRD: (-1, -1, 0, 1, 2)}
    assert found.fills == {
        0: ((BASE, 0),),
        1: ((BASE, 1),),
        2: ((OTHER, 1), (THIRD, 0)),
        3: ((OTHER, 2), (THIRD, 1)),
        4: ((THIRD, 2),),
    }


def test_without_a_base_all_rows_are_averaged() -> None:
    assert three(prefers_base=False)[1].fills[1] == ((BASE, 1), (OTHER, 0))


def test_settings_of_tokens_come_first() -> None:
    given, _ = three()
    told = (
        ("b", TokenRow(THIRD, token="e", is_forced=True)),
        ("c", TokenRow(is_zero=True)),
        ("d", TokenRow(OTHER, token_id=0)),
        ("f", TokenRow()),
    )
    found = vocabulary_of(TokenizerPolicy("union", told), BASE, given)
    assert [rows[1] for rows in found.maps.values()] == [-1, -1, -1]
    assert (found.fills[1], found.fills[2], found.fills[3]) == (((THIRD, 2),), (), ((OTHER, 0),))
    assert (found.ids["f"], found.fills[5]) == (5, ())


def test_a_model_that_only_a_setting_names_gives_no_more_than_it_is_asked_for() -> None:
    given, _ = three()
    given[THIRD] = replace(given[THIRD], is_merged=False)
    found = vocabulary_of(TokenizerPolicy("union", (("x", TokenRow(THIRD, token="e")),)), BASE, given)
    assert list(found.ids) == ["a", "b", "c", "d", "x"]
    assert found.fills[2] == ((OTHER, 1),)  # not the mean with the third's
    assert found.fills[4] == ((THIRD, 2),)
    whole = vocabulary_of(TokenizerPolicy(THIRD), BASE, given)
    assert whole.fills == {0: ((OTHER, 1),), 1: ((OTHER, 2),), 2: ((THIRD, 2),)}


def test_rows_without_a_token_stay_in_models_of_that_vocabulary() -> None:
    ids = {"a": 0, "b": 2}
    same = Tokenizer("a/model", LocalFolder(Path()), "", ids, {}, "tokenizer.json", 2, {})
    given = {BASE: Speaker(same, 3), OTHER: Speaker(same, 3), THIRD: Speaker(tokenizer("ab"), 2)}
    found = vocabulary_of(TokenizerPolicy("base"), BASE, given)
    assert found.maps == {BASE: (0, 1, 2), OTHER: (0, 1, 2), THIRD: (0, -1, 1)}
    assert found.fills == {1: ((BASE, 1),)}
