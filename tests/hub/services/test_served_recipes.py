"""Recipes that are known because they were served: so many, and the longest unasked are forgotten."""

from dataclasses import replace
from datetime import timedelta
from functools import partial

import pytest
from sqlmodel import col, select

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Recipe, now
from adapterhub.hub.services import recipes
from adapterhub.hub.services.access import Caller
from adapterhub.merging.recipes.canonical import recipe_digest


@pytest.fixture(params=["sqlite_hub", pytest.param("postgres_hub", marks=pytest.mark.slow)])
def few(request: pytest.FixtureRequest) -> Hub:
    """A hub that knows ten of them."""
    hub: Hub = request.getfixturevalue(request.param)
    return replace(hub, settings=hub.settings.model_copy(update={"served_recipes": 10}))


def known(hub: Hub) -> list[str]:
    with hub.db.read() as session:
        return sorted(session.exec(select(Recipe.text)))


def test_the_longest_unasked_are_forgotten(few: Hub) -> None:
    caller = Caller(None)
    for number in range(30):
        recipes.keep_served(few, caller, f'{{"n": {number}}}', partial(str, f"r{number:02}"))
        assert len(known(few)) <= 10
    assert "r29" in known(few)
    assert "r00" not in known(few)


def test_what_was_merged_or_saved_is_kept_however_much_is_served(few: Hub) -> None:
    caller = Caller(None)
    for number in range(15):
        canonical, text = f'{{"n": {number}}}', f"r{number:02}"
        recipes.keep_served(few, caller, canonical, partial(str, text))
        few.db.transact(partial(recipes.keep, caller=caller, canonical=canonical, text=text))
        recipes.keep_served(few, caller, canonical, partial(str, text))
    assert len(known(few)) == 15


def test_what_is_asked_for_again_is_counted_as_of_that_day(few: Hub) -> None:
    caller = Caller(None)
    recipes.keep_served(few, caller, '{"n": 0}', partial(str, "old"))

    def grow_old(session: object) -> None:
        for one in session.exec(select(Recipe).where(col(Recipe.served_at).is_not(None))):  # type: ignore[attr-defined]
            one.served_at = now() - timedelta(days=9)

    few.db.transact(grow_old)
    recipes.keep_served(few, caller, '{"n": 0}', partial(str, "old"))
    with few.db.read() as session:
        found = session.get(Recipe, recipe_digest('{"n": 0}'))
        assert found is not None
        assert found.served_at is not None
        assert now() - found.served_at < timedelta(minutes=5)
