"""The demo's plan holds together: what it measures it makes, and what it says it measured."""

from adapterhub.cli.demo import digits, story, works
from adapterhub.cli.demo.scores import Row
from adapterhub.merging.recipes.expression import parse

BRANCHES = {name: f"ported/{target}-01234567" for name, target in story.PORTS.items()}


def made() -> set[str]:
    return {work.name for work in works.WORKS} | set(story.MERGES)


def test_every_row_measures_something_that_is_made() -> None:
    for one in story._language_rows(BRANCHES) + story._vision_rows(BRANCHES):
        assert one.repo in made(), one.name
        if one.adapter:
            assert one.adapter[0] in made(), one.name
            assert one.adapter[1] in {"main", BRANCHES.get(one.adapter[0])}, one.name


def test_every_expression_parses_and_names_what_is_made() -> None:
    asked = [one.served[0] for one in story._vision_rows(BRANCHES) if one.served]
    for expression in [*asked, *(first for first, *_ in story.MERGES.values())]:
        assert {reference.name for reference in parse(expression).references()} <= {f"demo/{name}" for name in made()}


def test_bases_are_made_before_what_needs_them() -> None:
    names = [work.name for work in works.WORKS]
    assert all(work.base is None or names.index(work.base) < names.index(work.name) for work in works.WORKS)


def test_the_sentences_find_their_rows_and_tell_nothing_else() -> None:
    texts = {one.name: Row(one.name, {"code": 1.0, "licences": 1.0}, -1) for one in story._language_rows(BRANCHES)}
    images = {one.name: Row(one.name, dict.fromkeys(digits.TASKS, 0.5)) for one in story._vision_rows(BRANCHES)}
    told = story._sentences(texts, images)
    assert sum("nothing to" in sentence for sentence in told) == 7
