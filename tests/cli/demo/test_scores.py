"""What the demo says of its numbers follows from the numbers."""

import io

import pytest
from rich.console import Console

from adapterhub.cli.demo import scores
from adapterhub.cli.demo.scores import Row
from adapterhub.cli.demo.screen import Screen

BASE = Row("base", {"code": 2.0}, -1)
ALONE = Row("base + code", {"code": 1.5}, -1)


def test_kept_gain_is_the_share_of_the_way_from_base_to_patch() -> None:
    assert scores.kept_gain(2.0, 1.5, 1.6) == pytest.approx(0.8)
    assert scores.kept_gain(0.2, 0.9, 0.2) == 0.0
    assert scores.kept_gain(1.0, 1.0, 0.5) is None


def test_interference_tells_how_much_of_a_gain_is_left() -> None:
    both = Row("both", {"code": 1.6}, -1)
    assert scores.interference("code", BASE, ALONE, both) == "code: both keeps 80% of what base + code gains alone"


def test_a_patch_that_gains_nothing_is_called_so() -> None:
    worse = Row("base + code", {"code": 2.5}, -1)
    assert "does not better base" in scores.interference("code", BASE, worse, worse)
    assert "gains nothing" in scores.portability("code", BASE, ALONE, worse)


def test_a_port_is_compared_with_a_patch_trained_on_the_new_base() -> None:
    base, ported, fresh = (Row(name, {"rotated": value}) for name, value in (("b", 0.1), ("p", 0.9), ("f", 0.95)))
    assert "gains 94% of" in scores.portability("rotated", base, ported, fresh)


def test_the_table_marks_the_best_of_each_column_and_leaves_gaps_empty() -> None:
    shown = io.StringIO()
    screen = Screen(Console(file=shown, force_terminal=True, color_system="standard", width=80))
    screen.scores("Losses", ["code", "names"], [BASE, Row("x", {"code": 1.25, "names": 3.0}, -1)], "{:.2f}".format)
    text = shown.getvalue()
    assert "\x1b[1m1.25\x1b[0m" in text
    assert "\x1b[1m2.00\x1b[0m" not in text
    assert "2.00" in text


def test_foreign_text_is_neither_markup_nor_control_characters() -> None:
    shown = io.StringIO()
    Screen(Console(file=shown, width=40)).say("[bold]x[/bold] \x1b[2J" + "y" * 60)
    assert shown.getvalue() == "         [bold]x[/bold] [2J" + "y" * 60 + "\n"


def test_lines_of_a_command_are_cut_where_the_screen_ends() -> None:
    shown = io.StringIO()
    Screen(Console(file=shown, width=20)).output("short\n" + "y" * 60)
    assert shown.getvalue() == "         short\n         yyyyyyyyyy…\n"
