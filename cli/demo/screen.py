"""What the demo shows: headings with the time, the commands it runs, progress bars, and tables of numbers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from adapterhub.cli.output import clean

if TYPE_CHECKING:
    from adapterhub.cli.demo.scores import Row
    from adapterhub.cli.demo.workshop import Event

_FILE_WIDTH = 100
_INDENT = " " * 9


class Screen:
    """Where the demo tells what it does, on stdout. Foreign text is never read as markup or control characters."""

    def __init__(self, console: Console | None = None) -> None:
        # wide enough for the tables where nobody looks but a file
        shown = Console(highlight=False)
        self._console = console or (shown if shown.is_terminal else Console(highlight=False, width=_FILE_WIDTH))
        self._started = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the demo began."""
        return time.monotonic() - self._started

    def heading(self, text: str) -> None:
        """Begin a stage."""
        self._console.print()
        self._console.print(Text.assemble((f"{self.elapsed_s:5.0f} s  ", "dim"), (text, "bold")))

    def say(self, text: str, style: str = "") -> None:
        """A line or several, indented."""
        for line in clean(text).split("\n"):
            self._console.print(Text(_INDENT + line, style=style), soft_wrap=True)

    def output(self, text: str) -> None:
        """What a command printed, its lines cut where the screen ends."""
        for line in clean(text).split("\n"):
            self._console.print(Text(_INDENT + line), no_wrap=True, overflow="ellipsis")

    def command(self, text: str) -> None:
        """A command about to be run, as one would type it."""
        self.say(f"$ {text}", style="cyan")

    @contextmanager
    def training(self, names: Sequence[str]) -> Iterator[Callable[[Event], None]]:
        """A progress bar for each work, as it begins; where there is no terminal, a line at each one's end."""
        columns = (
            TextColumn(_INDENT + "{task.fields[work]:<16}"),
            BarColumn(30),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console, disable=not self._console.is_terminal) as progress:
            bars = {name: progress.add_task("", work=name, loss=0.0, total=1, visible=False) for name in names}

            def show(event: Event) -> None:
                name, done, total, loss = event
                if not progress.tasks[bars[name]].visible:
                    progress.reset(bars[name], total=total, visible=True)
                progress.update(bars[name], completed=done, loss=loss)
                if progress.disable and done == total:
                    self.say(f"{name:<16} {total} steps, loss of the last {loss:.3f}")

            yield show

    @contextmanager
    def counting(self, what: str, total: int) -> Iterator[Callable[[], None]]:
        """One progress bar; call what is given at each thing done."""
        columns = (TextColumn(_INDENT + what), BarColumn(30), MofNCompleteColumn())
        with Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal) as bar:
            task = bar.add_task("", total=total)
            yield lambda: bar.advance(task)

    def scores(self, title: str, columns: Sequence[str], rows: Sequence[Row], show: Callable[[float], str]) -> None:
        """A table of measured numbers. In each column the best is bold."""
        table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("model", no_wrap=True)
        for column in columns:
            table.add_column(column, justify="right")
        best = {column: _best(rows, column) for column in columns}
        for row in rows:
            cells = [_cell(row.values, column, best[column], show) for column in columns]
            table.add_row(Text(row.name), *cells, end_section=row.ends_section)
        self._console.print()
        self._console.print(table)


def _best(rows: Sequence[Row], column: str) -> float | None:
    values = [row.values[column] * row.better for row in rows if column in row.values]
    return max(values, default=None)


def _cell(values: Mapping[str, float], column: str, best: float | None, show: Callable[[float], str]) -> Text:
    if column not in values:
        return Text("")
    text = show(values[column])
    return Text(text, style="bold" if best is not None and show(abs(best)) == text else "")
