"""The Hugging Face dialect: what unmodified huggingface_hub, transformers, peft and `hf` send and expect."""

from fastapi import APIRouter

from adapterhub.hub.api.hf import (
    cards,
    collections,
    commits,
    copies,
    discussions,
    gates,
    git,
    lfs,
    lfs_downloads,
    likes,
    lists,
    not_offered,
    other_types,
    overviews,
    refs,
    repos,
    resolve,
    tree,
    users,
    webhooks,
    xet,
)

router = APIRouter(include_in_schema=False)
for _part in (
    other_types,
    not_offered,
    users,
    overviews,
    likes,
    gates,
    collections,
    webhooks,
    cards,
    lists,
    repos,
    refs,
    tree,
    commits,
    copies,
    discussions,
    git,
    lfs,
    lfs_downloads,
    xet,
    resolve,
):
    router.include_router(_part.router)
