"""`adapterhub webhook`: who is told when something changes."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from adapterhub.cli.errors import Misused
from adapterhub.cli.options import AsJson, connect, examples, group
from adapterhub.cli.output import say, show_fields, show_json, show_json_lines, show_table
from adapterhub.hub.web.wording import ago

webhook = group("webhook", "Have an address called when something changes.")

WebhookId = Annotated[str, typer.Argument(help="The webhook's id, as `webhook list` prints it.")]


def join(app: typer.Typer) -> None:
    app.add_typer(webhook)


@webhook.command("list", epilog=examples("webhook list", "webhook list --json"))
def list_webhooks(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List your webhooks."""
    found = connect(ctx).get("/api/settings/webhooks")
    if as_json:
        show_json_lines(found)
        return
    rows = ((w["id"], w["url"], _watched(w), _state(w)) for w in found)
    show_table(("id", "url", "watches", "state"), rows)


@webhook.command(
    epilog=examples(
        "webhook create https://ci.example.org/hook --watch demo/code --secret s3cret",
        "webhook create https://ci.example.org/hook --watch org:team --domain repo",
    )
)
def create(
    ctx: typer.Context,
    url: Annotated[str, typer.Argument(help="Address to call.")],
    watch: Annotated[list[str], typer.Option(help="ns/name, user:NAME or org:NAME. May be repeated.")],
    domain: Annotated[
        list[str] | None, typer.Option(help="repo or discussion; default: both.", show_default=False)
    ] = None,
    secret: Annotated[
        str | None, typer.Option(help="Sent as X-Webhook-Secret, and signs each delivery.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a webhook."""
    body: dict[str, Any] = {"url": url, "watched": [_item(text) for text in watch], "secret": secret}
    made = connect(ctx).post("/api/settings/webhooks", body | ({"domains": domain} if domain else {}))["webhook"]
    if as_json:
        show_json(made)
    else:
        say(f"made webhook {made['id']}; try it with `adapterhub webhook ping {made['id']}`")


@webhook.command(epilog=examples("webhook show WEBHOOK"))
def show(ctx: typer.Context, webhook_id: WebhookId, as_json: AsJson = False) -> None:
    """Show one webhook."""
    found = connect(ctx).get(_path(webhook_id))["webhook"]
    if as_json:
        show_json(found)
        return
    fields = {"url": found["url"], "watches": _watched(found), "domains": ", ".join(found["domains"])}
    show_fields((fields | {"secret": found["secret"] or "none", "state": _state(found)}).items())


@webhook.command(epilog=examples("webhook deliveries WEBHOOK", "webhook deliveries WEBHOOK --json"))
def deliveries(
    ctx: typer.Context,
    webhook_id: WebhookId,
    limit: Annotated[int, typer.Option(min=1, max=200, help="Most deliveries to list.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List what was sent, newest first, and what came of it."""
    found = connect(ctx).get(f"/api/webhooks/{quote(webhook_id, safe='')}/deliveries", limit=limit)["items"]
    if as_json:
        show_json_lines(found)
        return
    rows = ((d["id"], d["event"], d["state"], d["attempts"], _outcome(d), ago(d["created_at"])) for d in found)
    show_table(("id", "event", "state", "attempts", "answer", "when"), rows, numeric=("attempts",))


@webhook.command(epilog=examples("webhook replay WEBHOOK DELIVERY"))
def replay(
    ctx: typer.Context,
    webhook_id: WebhookId,
    delivery_id: Annotated[str, typer.Argument(help="The delivery's id, as `webhook deliveries` prints it.")],
    as_json: AsJson = False,
) -> None:
    """Send the same event once more."""
    _queue(ctx, webhook_id, f"deliveries/{quote(delivery_id, safe='')}/replay", as_json)


@webhook.command(epilog=examples("webhook ping WEBHOOK"))
def ping(ctx: typer.Context, webhook_id: WebhookId, as_json: AsJson = False) -> None:
    """Send a delivery that tells nothing, to try the webhook out."""
    _queue(ctx, webhook_id, "ping", as_json)


@webhook.command(epilog=examples("webhook enable WEBHOOK"))
def enable(ctx: typer.Context, webhook_id: WebhookId) -> None:
    """Switch a webhook on again."""
    connect(ctx).post(_path(webhook_id) + "/enable")
    say(f"webhook {webhook_id} is on")


@webhook.command(epilog=examples("webhook disable WEBHOOK"))
def disable(ctx: typer.Context, webhook_id: WebhookId) -> None:
    """Switch a webhook off; it stays with its deliveries."""
    connect(ctx).post(_path(webhook_id) + "/disable")
    say(f"webhook {webhook_id} is off")


@webhook.command(epilog=examples("webhook delete WEBHOOK --yes"))
def delete(
    ctx: typer.Context,
    webhook_id: WebhookId,
    is_sure: Annotated[bool, typer.Option("--yes", help="Really remove it, with its deliveries.")] = False,
) -> None:
    """Remove a webhook."""
    if not is_sure:
        raise Misused(f"this removes webhook {webhook_id} and what is known of its deliveries; say --yes")
    connect(ctx).delete(_path(webhook_id))
    say(f"removed webhook {webhook_id}")


def _queue(ctx: typer.Context, webhook_id: str, what: str, as_json: bool) -> None:
    made = connect(ctx).post(f"/api/webhooks/{quote(webhook_id, safe='')}/{what}")
    if as_json:
        show_json(made)
    else:
        say(f"queued delivery {made['id']}; see `adapterhub webhook deliveries {webhook_id}`")


def _item(text: str) -> dict[str, str]:
    """ "ns/name", "user:NAME" or "org:NAME" as the server takes it. Raises Misused."""
    kind, colon, name = text.partition(":")
    if not colon:
        kind, name = "model", text
    if kind not in ("model", "user", "org") or not name:
        raise Misused(f"--watch {text!r}: write ns/name, user:NAME or org:NAME")
    return {"type": kind, "name": name}


def _watched(found: dict[str, Any]) -> str:
    return ", ".join(w["name"] if w["type"] == "model" else f"{w['type']}:{w['name']}" for w in found["watched"])


def _state(found: dict[str, Any]) -> str:
    return f"off: {found['disabledReason']}" if found["disabled"] else "on"


def _outcome(delivery: dict[str, Any]) -> str:
    return delivery["error"] or (str(delivery["status"]) if delivery["status"] else "")


def _path(webhook_id: str) -> str:
    return "/api/settings/webhooks/" + quote(webhook_id, safe="")
