"""The demo's texts: there is enough of each, and nothing that is measured on was trained on."""

import re

import pytest

from adapterhub.cli.demo import texts
from adapterhub.cli.demo.texts import Corpus


@pytest.fixture(scope="module")
def corpora() -> dict[str, Corpus]:
    found = (*texts.prose(), texts.code(), texts.licences(), texts.names(), texts.docstrings())
    return {corpus.name: corpus for corpus in found}


def passages(text: bytes) -> set[str]:
    """Passages by their letters, those left out that are too short to belong to one text."""
    every = ("".join(filter(str.isalpha, passage.lower())) for passage in re.split(r"\n\s*\n", text.decode()))
    return {letters for letters in every if len(letters) >= 24}


def test_each_manner_has_enough_to_learn_from_and_to_measure_on(corpora: dict[str, Corpus]) -> None:
    assert len(corpora) == 6
    for corpus in corpora.values():
        assert len(corpus.train) > 50_000, corpus.name
        assert len(corpus.test) > 10_000, corpus.name


def test_held_out_text_is_in_no_training_text_of_its_manner(corpora: dict[str, Corpus]) -> None:
    for corpus in corpora.values():
        assert not passages(corpus.train) & passages(corpus.test), corpus.name


def test_the_two_versions_of_the_base_read_different_prose(corpora: dict[str, Corpus]) -> None:
    old, new = corpora["prose"], corpora["new prose"]
    assert not passages(old.train + old.test) & passages(new.train + new.test)


def test_the_texts_are_the_same_each_time(corpora: dict[str, Corpus]) -> None:
    assert texts.prose()[0] == corpora["prose"]
    assert texts.names() == corpora["names"]
