"""What became of webhook deliveries. Webhooks themselves are made at /api/settings/webhooks."""

from fastapi import APIRouter, Query

from adapterhub.hub.api import threads
from adapterhub.hub.api.deps import CallerDep, HubDep
from adapterhub.hub.api.rest.schemas import DeliveryList, DeliveryView
from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import WebhookDelivery
from adapterhub.hub.services import webhooks
from adapterhub.hub.services.access import Caller

router = APIRouter(prefix="/api/webhooks", tags=["webhooks"])


@router.get("/{webhook_id}/deliveries")
async def list_deliveries(
    webhook_id: str, hub: HubDep, caller: CallerDep, limit: int = Query(50, ge=1, le=200)
) -> DeliveryList:
    """List the newest deliveries of a webhook of yours."""
    return await threads.run(_deliveries, hub, caller, webhook_id, limit)


@router.post("/{webhook_id}/deliveries/{delivery_id}/replay", status_code=202)
async def replay(webhook_id: str, delivery_id: str, hub: HubDep, caller: CallerDep) -> DeliveryView:
    """Send the same event once more."""
    return await threads.run(
        hub.db.transact, lambda session: _view(webhooks.replay(session, caller, webhook_id, delivery_id))
    )


@router.post("/{webhook_id}/ping", status_code=202)
async def ping(webhook_id: str, hub: HubDep, caller: CallerDep) -> DeliveryView:
    """Send a delivery that tells nothing, to try the webhook out."""
    return await threads.run(hub.db.transact, lambda session: _view(webhooks.ping(session, caller, webhook_id)))


def _deliveries(hub: Hub, caller: Caller, webhook_id: str, limit: int) -> DeliveryList:
    with hub.db.read() as session:
        found = webhooks.deliveries(session, caller, webhook_id, limit=limit)
        return DeliveryList(items=[_view(one) for one in found])


def _view(delivery: WebhookDelivery) -> DeliveryView:
    return DeliveryView.model_validate(delivery, from_attributes=True)
