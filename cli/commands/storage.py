"""`adapterhub storage`: care of the bytes, for administrators."""

from __future__ import annotations

import typer

from adapterhub.cli.options import AsJson, connect, examples, group, wait
from adapterhub.cli.output import say, show_json
from adapterhub.hub.web.wording import bytes_short

storage = group("storage", "Care for the bytes that are kept.")


def join(app: typer.Typer) -> None:
    app.add_typer(storage)


@storage.command(epilog=examples("storage sweep"))
def sweep(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Drop uploaded chunks that no client remembers any more; files stay. The server does so daily by itself."""
    client = connect(ctx)
    done = wait(client, client.post("/api/storage/sweep"), "sweep")
    if as_json:
        show_json(done)
        return
    told = f"dropped {done['xorbs']} xorbs, {bytes_short(done['size_bytes'])}"
    say(f"{told}; the clients of {done['repositories']} repositories begin anew")
