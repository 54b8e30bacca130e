"""Everything the command prints: data on stdout, talk and progress on stderr; nothing else prints.

Text that others wrote (cards, names, messages) is shown without control characters, so no repository can move the
cursor or recolour the terminal. JSON is ASCII with one object a line, and needs no such care.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.console import RenderableType

    from adapterhub.merging.engine import Progress

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_PIPE_WIDTH = 10_000
"""Columns of a line that goes into a file or pipe."""


def clean(text: object) -> str:
    """`text` without control characters and without those that turn the direction of writing."""
    return _CONTROL.sub("", str(text))


def say(text: str, *, to_stdout: bool = False) -> None:
    """Print one line of talk."""
    print(clean(text), file=sys.stdout if to_stdout else sys.stderr, flush=True)


def write(text: str) -> None:
    """Print a piece of an answer that arrives bit by bit, without ending the line."""
    print(clean(text), end="", flush=True)


def show_json(value: Any) -> None:
    """Print one JSON value on one line."""
    print(json.dumps(value, default=str))


def show_json_lines(values: Iterable[Any]) -> None:
    """Print a list, one JSON object a line."""
    for value in values:
        show_json(value)


def show_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, numeric: Sequence[str] = ()) -> None:
    """Print rows under bold headings; `numeric` columns are set to the right. Where there are none, say so."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column in numeric else "left")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    if table.row_count:
        _print(table)
    else:
        say("none")


def show_fields(pairs: Iterable[tuple[str, object]]) -> None:
    """Print name and value in two columns; empty values are left out."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        if value not in (None, "", (), [], {}):
            table.add_row(Text(name, style="dim"), Text(clean(value)))
    if table.row_count:
        _print(table)


def show_heading(text: str) -> None:
    """Print a heading, with an empty line above it."""
    from rich.text import Text

    print()
    _print(Text(clean(text), style="bold"))


def show_text(text: object) -> None:
    """Print a paragraph, folded at words on a terminal."""
    from rich.text import Text

    _print(Text(clean(text)))


class Waiting:
    """A progress bar on stderr for one job; where stderr is no terminal, a line at each change of state.

    in_bytes: whether progress counts bytes, whose rate is then shown too.
    """

    def __init__(self, title: str, *, in_bytes: bool = False) -> None:
        from rich import progress as rich
        from rich.console import Console

        console = Console(stderr=True, markup=False, highlight=False, emoji=False)
        columns = [rich.TextColumn("{task.description}", markup=False), rich.BarColumn(), rich.TaskProgressColumn()]
        columns += [rich.TransferSpeedColumn()] if in_bytes else []
        columns += [rich.TimeElapsedColumn(), rich.TimeRemainingColumn()]
        self._progress = rich.Progress(*columns, console=console, transient=True)
        self._title = title
        self._task = self._progress.add_task(clean(title), total=None)
        self._is_terminal = console.is_terminal
        self._state = ""

    def __enter__(self) -> Self:
        if self._is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._is_terminal:
            self._progress.stop()

    def update(self, job: Mapping[str, Any]) -> None:
        """Show the job as it stands now."""
        at = job["progress"]
        if not self._is_terminal:
            if job["state"] != self._state:
                say(f"{self._title}: {job['state']}")
        else:
            total = at["total"] or None
            what = clean(at["message"] or job["state"])[-48:]
            self._progress.update(
                self._task, total=total, completed=at["done"], description=f"{clean(self._title)}  {what}"
            )
        self._state = job["state"]


def progress_shown(waiting: Waiting) -> Callable[[Progress], None]:
    """Shows how far the merging library is, as a job's progress is shown."""

    def show(at: Progress) -> None:
        waiting.update({"state": "running", "progress": {"done": at.done, "total": at.total, "message": at.message}})

    return show


def _cell(value: object) -> str:
    return "" if value is None else clean(value).replace("\n", " ")


def _print(what: RenderableType) -> None:
    from rich.console import Console

    console = Console(markup=False, highlight=False, emoji=False)
    if console.is_terminal:
        console.print(what)
        return
    # into a file or pipe nothing is folded, and no line ends in the blanks that fill a column
    unfolded = Console(markup=False, highlight=False, emoji=False, width=_PIPE_WIDTH)
    with unfolded.capture() as captured:
        unfolded.print(what)
    for line in captured.get().splitlines():
        print(line.rstrip())
