"""Our own dialect of REST, under /api: one file a noun."""

from fastapi import APIRouter

from adapterhub.hub.api.rest import (
    access,
    admin,
    files,
    jobs,
    merges,
    mirror_tokens,
    mirrors,
    patches,
    ports,
    recipes,
    storage,
    tokens,
    tunings,
    variants,
    webhooks,
)
from adapterhub.hub.api.rest.schemas import Problem

router = APIRouter(
    responses={
        status: {"model": Problem, "description": "Refused; `code` says why."} for status in (400, 401, 403, 404)
    }
)
for part in (
    access,
    admin,
    files,
    jobs,
    merges,
    mirror_tokens,
    mirrors,
    patches,
    ports,
    recipes,
    storage,
    tokens,
    tunings,
    variants,
    webhooks,
):
    router.include_router(part.router)
