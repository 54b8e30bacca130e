"""The OpenAI dialect under /v1, and the tasks of Hugging Face's inference API under /models."""

from fastapi import APIRouter

from adapterhub.hub.api.openai import chat, completions, embeddings, lorax, models, tasks

router = APIRouter()
# a model's name may hold slashes, so tasks, which end in a name, come last
for part in (models, chat, completions, embeddings, lorax, tasks):
    router.include_router(part.router)
