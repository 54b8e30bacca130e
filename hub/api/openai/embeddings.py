"""POST /v1/embeddings. Source: platform.openai.com/docs/api-reference/embeddings, as the openai client reads it."""

import base64
import struct
from collections.abc import Sequence

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from adapterhub.hub.api.deps import CallerDep, HubDep
from adapterhub.hub.api.openai.requests import EngineDep, named, unless_gone, variant
from adapterhub.hub.api.openai.schemas import EmbeddingRequest

router = APIRouter(tags=["openai"])


@router.post("/v1/embeddings")
async def create_embedding(
    body: EmbeddingRequest, request: Request, hub: HubDep, caller: CallerDep, engine: EngineDep
) -> Response:
    """One vector for each text: pooled as the model's files say, else the mean of its tokens' last hidden states."""
    spec = await variant(hub, caller, body.served)
    answer = await unless_gone(request, engine.task(spec, body.asked()))
    found = answer.output
    as_base64 = body.encoding_format == "base64"
    return JSONResponse(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": _base64(one) if as_base64 else one}
                for index, one in enumerate(found["vectors"])
            ],
            "model": body.model,
            "usage": {"prompt_tokens": found["tokens"], "total_tokens": found["tokens"]},
            "system_fingerprint": answer.execution_id,
        },
        headers=named(spec),
    )


def _base64(vector: Sequence[float]) -> str:
    """The numbers as little-endian float32, as the openai client asks for them unless it is told otherwise."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
