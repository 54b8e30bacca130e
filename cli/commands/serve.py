"""`adapterhub serve`: the server, with the settings one changes most as options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption

from adapterhub.cli.options import examples, settings

EXAMPLES = examples(
    "serve",
    "serve --port 8080 --data /srv/adapterhub",
    'serve --warm team/base --warm "team/base + 0.7*team/math"',
    "serve --storage-url s3://bucket/prefix --database-url postgresql+psycopg://hub@db/hub",
)


class _ServeCommand(TyperCommand):
    """Explains its options, and the settings that are none, with what the settings say of themselves."""

    def get_help(self, ctx: Any) -> str:
        from adapterhub.hub.settings import Settings

        fields = Settings.model_fields
        options = {option.name: option for option in self.params if isinstance(option, TyperOption)}
        for name, option in options.items():
            if name in fields:
                option.help = fields[name].description
                default = fields[name].default
                option.show_default = str(default).replace(str(Path.home()), "~") if default is not None else False
        others = "\n".join(
            f"  ADAPTERHUB_{n.upper():<20} {f.description}" for n, f in fields.items() if n not in options
        )
        self.epilog = f"{EXAMPLES}\n\n\b\nEvery option is a variable ADAPTERHUB_..., and so are:\n{others}"
        return super().get_help(ctx)


def join(app: typer.Typer) -> None:
    app.command(cls=_ServeCommand, epilog=EXAMPLES)(serve)


def serve(
    data: Annotated[Path | None, typer.Option(show_default=False)] = None,
    host: Annotated[str | None, typer.Option(show_default=False)] = None,
    port: Annotated[int | None, typer.Option(show_default=False)] = None,
    public_url: Annotated[str | None, typer.Option(show_default=False)] = None,
    database_url: Annotated[str | None, typer.Option(show_default=False)] = None,
    storage_url: Annotated[str | None, typer.Option(show_default=False)] = None,
    device: Annotated[str | None, typer.Option(show_default=False)] = None,
    workers: Annotated[int | None, typer.Option(show_default=False)] = None,
    engine: Annotated[str | None, typer.Option(show_default=False)] = None,
    log_level: Annotated[str | None, typer.Option(show_default=False)] = None,
    warm: Annotated[list[str] | None, typer.Option(show_default=False)] = None,
) -> None:
    """Start the hub: Hugging Face protocol, REST, OpenAI API and web pages on one port."""
    given = {name: value for name, value in locals().items() if value not in (None, [])}
    from adapterhub.hub.start import serve as start

    start(settings(given))
