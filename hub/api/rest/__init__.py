"""Our own dialect of REST, under /api: files, patches, recipes, merges, ports, jobs, storage, administration."""

from fastapi import APIRouter

from adapterhub.hub.api.rest import admin, files, jobs, merges, patches, ports, recipes, storage
from adapterhub.hub.api.rest.schemas import Problem

router = APIRouter(
    responses={
        status: {"model": Problem, "description": "Refused; `code` says why."} for status in (400, 401, 403, 404)
    }
)
for part in (files, patches, recipes, merges, ports, jobs, storage, admin):
    router.include_router(part.router)
