"""The `adapterhub` command: joins the files of commands/, and ends every error as one line and an exit code."""

import importlib
import os
import pkgutil
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version as distribution_version
from typing import Annotated

import typer

from adapterhub.cli.errors import FAILED, INTERRUPTED, exit_code_of
from adapterhub.cli.output import say
from adapterhub.errors import AdapterHubError

COMMANDS = "adapterhub.cli.commands"
DEBUG_VARIABLE = "ADAPTERHUB_DEBUG"

HELP = "Store, merge, port and serve patches of models: LoRA adapters, sparse diffs, masks."
EPILOG = """\b
Examples:
  adapterhub serve
  adapterhub patch push ./my-lora demo/my-lora
  adapterhub merge run "demo/base + 0.7*demo/code" --push demo/both
  adapterhub chat demo/both --message "Once upon a time"

\b
Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 refused or problems found, 130 interrupted."""


@dataclass(frozen=True)
class Globals:
    """The options before the command; None where they were not given."""

    endpoint: str | None = None
    token: str | None = None


def build() -> typer.Typer:
    """The command with everything that lies in commands/; none of those files loads what only its work needs."""
    app = typer.Typer(
        name="adapterhub",
        help=HELP,
        epilog=EPILOG,
        no_args_is_help=True,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_globals)
    package = importlib.import_module(COMMANDS)
    for name in sorted(module.name for module in pkgutil.iter_modules(package.__path__)):
        importlib.import_module(f"{COMMANDS}.{name}").join(app)
    return app


def main(args: Sequence[str] | None = None) -> None:
    """Run the command and exit. Raises SystemExit, with the code that EXIT_CODES explains."""
    arguments = list(sys.argv[1:] if args is None else args)
    is_debug = "--debug" in arguments or os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")
    try:
        typer.main.get_command(build())(arguments, prog_name="adapterhub")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except AdapterHubError as error:
        _end(str(error), exit_code_of(error), is_debug)
    except OSError as error:
        _end(str(error), FAILED, is_debug)
    except Exception as error:  # noqa: BLE001
        # the command's outermost edge: a fault of ours is one line too, and says where the rest is
        _end(f"{type(error).__name__}: {error}; this is a fault of adapterhub, --debug shows more", FAILED, is_debug)


def _end(sentence: str, code: int, is_debug: bool) -> None:
    if is_debug:
        traceback.print_exc()
    say("Error: " + " ".join(sentence.split()))
    sys.exit(code)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        say(f"adapterhub {distribution_version('adapterhub')}", to_stdout=True)
        raise typer.Exit


def _globals(
    ctx: typer.Context,
    endpoint: Annotated[
        str | None,
        typer.Option(help="URL of the server; else ADAPTERHUB_ENDPOINT, HF_ENDPOINT, http://127.0.0.1:8000."),
    ] = None,
    token: Annotated[
        str | None, typer.Option(help="Token; else ADAPTERHUB_TOKEN, HF_TOKEN, the one that `login` stored.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and end.")
    ] = False,
) -> None:
    ctx.obj = Globals(endpoint, token)
