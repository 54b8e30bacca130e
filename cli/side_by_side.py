"""Answers of several models at once: in columns on a terminal, one after the other in a file or pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.cli.errors import CliError
from adapterhub.cli.output import clean, say

if TYPE_CHECKING:
    from rich.console import RenderableType

REFRESHES_PER_S = 8


@dataclass
class _Column:
    """One model's answer so far. error: why it broke off."""

    name: str
    text: str = ""
    error: str = ""
    is_done: bool = False

    def take(self, pieces: Iterable[str]) -> None:
        try:
            for piece in pieces:
                self.text += piece
        except CliError as error:
            self.error = str(error)
        finally:
            self.is_done = True


def side_by_side(answers: Sequence[tuple[str, Iterator[str]]]) -> None:
    """Show answers as they arrive, all at the same time. Raises CliError once all ended, if one of them broke off."""
    columns = [_Column(name) for name, _ in answers]
    with ThreadPoolExecutor(len(columns), thread_name_prefix="answer") as threads:
        waiting = [threads.submit(column.take, pieces) for column, (_, pieces) in zip(columns, answers, strict=True)]
        if sys.stdout.isatty():
            from rich.live import Live

            with Live(get_renderable=lambda: _grid(columns), refresh_per_second=REFRESHES_PER_S):
                for one in as_completed(waiting):
                    one.result()
        else:
            for column, one in zip(columns, waiting, strict=True):
                one.result()
                say(f"== {column.name}", to_stdout=True)
                say(column.text, to_stdout=True)
    broken = [f"{column.name}: {column.error}" for column in columns if column.error]
    if broken:
        raise CliError("; ".join(broken))


def _grid(columns: Sequence[_Column]) -> RenderableType:
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(expand=True)
    for _ in columns:
        grid.add_column(ratio=1, overflow="fold")
    grid.add_row(
        *(
            Panel(
                Text(clean(column.text) + ("" if column.is_done else "▏") + clean(column.error)),
                title=Text(clean(column.name)),
                border_style="red" if column.error else "green" if column.is_done else "dim",
            )
            for column in columns
        )
    )
    return grid
