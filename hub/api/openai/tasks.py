"""POST /models/{model}: vectors and classes, as huggingface_hub's InferenceClient asks for them at a model's URL.

Source: huggingface_hub/inference/_providers/hf_inference.py: a text task sends {"inputs", "parameters"}, or the
parameters beside the inputs for feature extraction; an image is the raw body, or base64 in `inputs` with parameters.
"""

import base64
import binascii
import json
from typing import Any, cast

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from adapterhub.hub.api import threads
from adapterhub.hub.api.deps import CallerDep, HubDep
from adapterhub.hub.api.openai.requests import EngineDep, unless_gone, variant
from adapterhub.hub.errors import InvalidRequest
from adapterhub.hub.serving.protocol import Task, VariantSpec
from adapterhub.merging.folders import join, read_json

router = APIRouter(tags=["tasks"])

IMAGE = "image-classification"
TEXT_CLASSES = "text-classification"
VECTORS = "feature-extraction"
_HEADS = {"ForSequenceClassification": TEXT_CLASSES, "ForImageClassification": IMAGE}


@router.post("/models/{model:path}/pipeline/{task}")
async def run_named_task(
    model: str, task: str, request: Request, hub: HubDep, caller: CallerDep, engine: EngineDep
) -> Response:
    """Run a task by its name: feature-extraction, text-classification, image-classification."""
    spec = await variant(hub, caller, model)
    asked = await _asked(request, task)
    return JSONResponse((await unless_gone(request, engine.task(spec, asked))).output)


@router.post("/models/{model:path}")
async def run_task(model: str, request: Request, hub: HubDep, caller: CallerDep, engine: EngineDep) -> Response:
    """Run the task that the model's head is for: classes of texts or images, else vectors of texts."""
    spec = await variant(hub, caller, model)
    asked = await _asked(request, await threads.run(_task_of, spec))
    return JSONResponse((await unless_gone(request, engine.task(spec, asked))).output)


def _task_of(spec: VariantSpec) -> str:
    """The task that the head of the base is for; vectors where there is no classifier."""
    file = join(spec.base.path, "config.json")
    config = read_json(spec.base.folder, file) if file in spec.base.folder.names() else {}
    architecture = str((config.get("architectures") or [""])[0])
    return next((task for head, task in _HEADS.items() if architecture.endswith(head)), VECTORS)


async def _asked(request: Request, task: str) -> Task:
    body = await request.body()
    if "json" not in request.headers.get("content-type", "") and task == IMAGE:
        return Task(task, image=body)
    try:
        sent: Any = json.loads(body)
    except ValueError as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None
    if not isinstance(sent, dict) or "inputs" not in sent:
        raise InvalidRequest("inputs: missing from the body")
    rest = {name: value for name, value in sent.items() if name not in ("inputs", "parameters", "options")}
    parameters = rest | cast("dict[str, Any]", sent.get("parameters") or {})
    if task == IMAGE:
        return Task(task, image=_image(sent["inputs"]), parameters=parameters)
    inputs = sent["inputs"]
    is_texts = isinstance(inputs, list) and all(isinstance(one, str) for one in inputs)
    if not isinstance(inputs, str) and not is_texts:
        raise InvalidRequest("inputs: a text or a list of texts is expected")
    return Task(task, inputs, parameters=parameters)


def _image(inputs: Any) -> bytes:
    try:
        return base64.b64decode(inputs, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise InvalidRequest("inputs: an image in base64 is expected") from None
