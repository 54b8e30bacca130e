"""What reaches the terminal."""

import json

import pytest

from adapterhub.cli import output
from adapterhub.cli.commands.port import OWN_BRANCH, with_push_value


def test_foreign_text_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "a\x1b[31mred\x07\u202etxt.exe\x9b2J"
    output.say(evil)
    output.show_table(("name",), [(evil,)])
    output.show_fields([("name", evil)])
    output.show_text(evil)
    captured = capsys.readouterr()
    for sign in "\x1b\x07\u202e\x9b":
        assert sign not in captured.out + captured.err


def test_brackets_are_text_and_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_table(("name",), [("[bold]x[/bold] :smile:",)])
    assert "[bold]x[/bold] :smile:" in capsys.readouterr().out


def test_lists_in_a_pipe_are_one_line_a_row_without_trailing_blanks(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_table(("name", "number"), [("x" * 300, None), ("two\nlines", 5)], numeric=("number",))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines == [line.rstrip() for line in lines]


def test_an_empty_list_says_so_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_table(("name",), [])
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "none\n")


def test_json_is_ascii_and_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    values = [{"name": "Δ\x1b\u202e"}, {"name": "two\nlines"}]
    output.show_json_lines(values)
    text = capsys.readouterr().out
    assert text.isascii()
    assert [json.loads(line) for line in text.splitlines()] == values


def test_waiting_tells_each_state_once_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with output.Waiting("merge") as waiting:
        for state in ("queued", "running", "running", "succeeded"):
            waiting.update({"state": state, "progress": {"done": 1, "total": 2, "message": ""}})
    assert capsys.readouterr().err == "merge: queued\nmerge: running\nmerge: succeeded\n"


def test_push_may_stand_without_a_name() -> None:
    assert with_push_value(["a/b", "--to", "c/d", "--push"])[-1] == f"--push={OWN_BRANCH}"
    assert with_push_value(["--push", "--to", "c/d", "a/b"])[0] == f"--push={OWN_BRANCH}"
    assert with_push_value(["--push", "e/f", "a/b"]) == ["--push", "e/f", "a/b"]
