"""Webhooks. Source: huggingface_hub/hf_api.py list_webhooks, create_webhook, update_webhook and their neighbours."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from adapterhub.hub.api.deps import CallerDep, HubDep
from adapterhub.hub.api.hf.addressing import read, write
from adapterhub.hub.api.raw import RawRoute
from adapterhub.hub.errors import InvalidRequest
from adapterhub.hub.services import webhooks
from adapterhub.hub.services.webhooks import Shown, Wish

router = APIRouter(prefix="/api/settings/webhooks", route_class=RawRoute)


class Watched(BaseModel):
    """A thing to watch."""

    type: str
    name: str


class WebhookWish(BaseModel):
    """A webhook to make or change. jobSourceId: of a job to run in place of a request, which this hub does not."""

    watched: list[Watched] = Field(default_factory=list, max_length=1000)
    domains: list[str] | None = None
    url: str | None = None
    secret: str | None = None
    jobSourceId: str | None = None  # noqa: N815  the client's spelling

    def wish(self) -> Wish:
        """The same as the service takes it. Raises InvalidRequest."""
        if self.jobSourceId is not None:
            raise InvalidRequest("this hub runs no jobs of Hugging Face's; give the webhook a url")
        return Wish(self.url, [item.model_dump() for item in self.watched], self.domains, self.secret)


@router.get("")
async def list_webhooks(hub: HubDep, caller: CallerDep) -> list[dict[str, Any]]:
    """The caller's webhooks."""
    return [_json(one) for one in await read(hub, lambda session: webhooks.listing(session, hub, caller))]


@router.post("")
async def create_webhook(hub: HubDep, caller: CallerDep, new: WebhookWish) -> dict[str, Any]:
    """Make a webhook; only here its secret is answered whole. Raises InvalidRequest, OutboundRefused."""
    wish = new.wish()
    made = _json(await write(hub, lambda session: webhooks.create(session, hub, caller, wish)))
    return {"webhook": made | {"secret": wish.secret}}


@router.get("/{webhook_id}")
async def get_webhook(hub: HubDep, caller: CallerDep, webhook_id: str) -> dict[str, Any]:
    """One webhook. Raises WebhookNotFound."""
    return {"webhook": _json(await read(hub, lambda session: webhooks.get(session, hub, caller, webhook_id)))}


@router.post("/{webhook_id}")
async def update_webhook(hub: HubDep, caller: CallerDep, webhook_id: str, changed: WebhookWish) -> dict[str, Any]:
    """Change a webhook; what is not said, or an empty list of watched things, stays as it is."""
    wish = changed.wish()
    return {"webhook": _json(await write(hub, lambda session: webhooks.update(session, hub, caller, webhook_id, wish)))}


@router.post("/{webhook_id}/{verb}")
async def switch_webhook(hub: HubDep, caller: CallerDep, webhook_id: str, verb: str) -> dict[str, Any]:
    """Switch a webhook on or off: "enable" or "disable". Raises InvalidRequest for anything else."""
    if verb not in ("enable", "disable"):
        raise InvalidRequest(f"{verb!r}: enable or disable a webhook")
    disabled = verb == "disable"
    done = await write(hub, lambda session: webhooks.set_disabled(session, hub, caller, webhook_id, disabled=disabled))
    return {"webhook": _json(done)}


@router.delete("/{webhook_id}")
async def delete_webhook(hub: HubDep, caller: CallerDep, webhook_id: str) -> None:
    """Remove a webhook."""
    await write(hub, lambda session: webhooks.delete(session, caller, webhook_id))


def _json(shown: Shown) -> dict[str, Any]:
    row = shown.row
    shape: dict[str, Any] = {
        "id": row.id,
        "url": row.url,
        "watched": [{"type": kind, "name": name} for kind, name in shown.watched],
        "domains": row.domains,
        "secret": shown.secret,
        "disabled": row.disabled,
    }
    return shape | ({"disabledReason": row.disabled_reason} if row.disabled else {})
