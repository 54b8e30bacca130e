"""What the operator wants in memory from the start: loaded with the rights of the service's first administrator."""

import asyncio

import structlog
from sqlmodel import col, select

from adapterhub.errors import AdapterHubError
from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Account
from adapterhub.hub.errors import Forbidden
from adapterhub.hub.services import variants
from adapterhub.hub.services.access import Caller
from adapterhub.hub.serving.protocol import Engine, VariantSpec

_log = structlog.get_logger()


async def warm(hub: Hub, engine: Engine) -> None:
    """Load what the settings want in memory, for good; what cannot be is told in the log, and the rest is loaded."""
    for model in hub.settings.warm:
        try:
            spec = await asyncio.to_thread(wanted, hub, model)
            loaded = await engine.load(spec, pinned=True)
            _log.info("warm", model=model, size_bytes=loaded["size_bytes"])
        except AdapterHubError as error:
            _log.error("warm.failed", model=model, error=str(error))


def wanted(hub: Hub, model: str) -> VariantSpec:
    """The variant that a setting names. Raises Forbidden without an administrator, and as `variants.served`."""
    with hub.db.read() as session:
        account = session.exec(
            select(Account)
            .where(col(Account.is_admin), col(Account.disabled_at).is_(None))
            .order_by(col(Account.created_at), col(Account.id))
        ).first()
        if account is None:
            raise Forbidden(f"{model}: this service has no administrator whose rights could load it")
        caller = Caller(account.id, account.name, is_admin=True, token_role="admin")  # noqa: S106  a role, no secret
    return variants.served(hub, caller, model)
