"""Answers in columns."""

import io

from rich.console import Console

from adapterhub.cli.side_by_side import _Column, _grid


def test_words_longer_than_a_column_are_wrapped_and_not_cut() -> None:
    long = "x" * 100 + "END"
    console = Console(width=60, record=True, color_system=None, file=io.StringIO())
    console.print(_grid([_Column("one", long, is_done=True), _Column("two", "short", error="broke off")]))
    shown = console.export_text()
    assert "".join(shown.split("│")).replace(" ", "").count("x") == 100
    assert "…" not in shown
    assert "broke off" in shown
