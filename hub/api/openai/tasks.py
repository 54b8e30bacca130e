"""POST /models/{model}: vectors, classes, words and more, as huggingface_hub's InferenceClient asks at a model's URL.

Source: huggingface_hub/inference/_providers/hf_inference.py: a text task sends {"inputs", "parameters"}, or the
parameters beside the inputs for feature extraction; an image or a sound is the raw body, or base64 in `inputs` with
parameters.
"""

import base64
import binascii
import json
from typing import Any, cast

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.responses import JSONResponse

from adapterhub.hub.api import threads
from adapterhub.hub.api.deps import CallerDep, HubDep
from adapterhub.hub.api.openai import lorax
from adapterhub.hub.api.openai.requests import EngineDep, named, unless_gone, variant
from adapterhub.hub.errors import InvalidRequest
from adapterhub.hub.serving.protocol import Task, VariantSpec
from adapterhub.merging.folders import join, read_json

router = APIRouter(tags=["tasks"])

GENERATION = "text-generation"
IMAGE = "image-classification"
TEXT_CLASSES = "text-classification"
TAGS = "token-classification"
MASKS = "fill-mask"
VECTORS = "feature-extraction"
SOUND_CLASSES = "audio-classification"
SPEECH = "automatic-speech-recognition"
VOICE = "text-to-speech"
_HEADS = {
    "ForSequenceClassification": TEXT_CLASSES,
    "ForTokenClassification": TAGS,
    "ForImageClassification": IMAGE,
    "ForAudioClassification": SOUND_CLASSES,
    "ForCTC": SPEECH,
    "ForSpeechSeq2Seq": SPEECH,
    "WhisperForConditionalGeneration": SPEECH,
    "ForMaskedLM": MASKS,
    "VitsModel": VOICE,
    "ForCausalLM": GENERATION,
    "ForConditionalGeneration": GENERATION,
    "LMHeadModel": GENERATION,
}
_MEDIA = {IMAGE: "an image", SOUND_CLASSES: "a sound", SPEECH: "a sound"}
"""Tasks on files, and what those are."""
_HEARS = ("wav2vec2", "wav2vec2-bert", "hubert", "wavlm", "unispeech", "sew", "data2vec-audio")
"""Types of models whose classifiers are of sounds, though their names say of sequences."""


@router.post("/models/{model:path}/pipeline/{task}")
async def run_named_task(
    model: str, task: str, request: Request, hub: HubDep, caller: CallerDep, engine: EngineDep
) -> Response:
    """Run a task: text-generation, fill-mask, feature-extraction, automatic-speech-recognition, text-to-speech,
    text-, token-, image- or audio-classification."""
    if task == GENERATION:
        return await lorax.generate(_generation(model, await _json(request)), request, hub, caller, engine)
    return await _answer(request, engine, await variant(hub, caller, model), task)


@router.post("/models/{model:path}")
async def run_task(model: str, request: Request, hub: HubDep, caller: CallerDep, engine: EngineDep) -> Response:
    """Run the task that the model's head is for: classes of texts, tokens, images, sounds, speech, text, else
    vectors.

    A model that generates text, or fills masks, gives vectors where the body has neither `parameters` nor `stream`, as
    InferenceClient.feature_extraction sends it.
    """
    spec = await variant(hub, caller, model)
    task = await threads.run(_task_of, spec)
    if task in (GENERATION, MASKS):
        sent = await _json(request)
        if sent.keys().isdisjoint({"parameters", "stream"}):
            task = VECTORS
        elif task == GENERATION:
            return await lorax.generate(_generation(model, sent), request, hub, caller, engine)
    return await _answer(request, engine, spec, task)


async def _answer(request: Request, engine: EngineDep, spec: VariantSpec, task: str) -> Response:
    output = (await unless_gone(request, engine.task(spec, await _asked(request, task)))).output
    if task == VOICE:
        return Response(base64.b64decode(output["audio"]), media_type="audio/wav", headers=named(spec))
    return JSONResponse(output, headers=named(spec))


def _task_of(spec: VariantSpec) -> str:
    """The task that the head of the base is for; vectors where there is no head."""
    file = join(spec.base.path, "config.json")
    config = read_json(spec.base.folder, file) if file in spec.base.folder.names() else {}
    architecture = str((config.get("architectures") or [""])[0])
    task = next((task for head, task in _HEADS.items() if architecture.endswith(head)), VECTORS)
    return SOUND_CLASSES if task == TEXT_CLASSES and config.get("model_type") in _HEARS else task


async def _asked(request: Request, task: str) -> Task:
    if "json" not in request.headers.get("content-type", "") and task in _MEDIA:
        return Task(task, media=await request.body())
    sent = await _json(request)
    rest = {name: value for name, value in sent.items() if name not in ("inputs", "parameters", "options")}
    parameters = rest | cast("dict[str, Any]", sent.get("parameters") or {})
    if task in _MEDIA:
        return Task(task, media=_file(sent["inputs"], _MEDIA[task]), parameters=parameters)
    inputs = sent["inputs"]
    is_texts = isinstance(inputs, list) and all(isinstance(one, str) for one in inputs)
    if not isinstance(inputs, str) and not is_texts:
        raise InvalidRequest("inputs: a text or a list of texts is expected")
    return Task(task, inputs, parameters=parameters)


async def _json(request: Request) -> dict[str, Any]:
    try:
        sent: Any = json.loads(await request.body())
    except ValueError as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None
    if not isinstance(sent, dict) or "inputs" not in sent:
        raise InvalidRequest("inputs: missing from the body")
    return sent


def _generation(model: str, sent: dict[str, Any]) -> lorax.LoraxRequest:
    """The request for text, by the model of the URL."""
    try:
        asked = lorax.LoraxRequest.model_validate({**sent, "parameters": sent.get("parameters") or {}})
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None
    asked.parameters.model_id = model
    return asked


def _file(inputs: Any, what: str) -> bytes:
    try:
        return base64.b64decode(inputs, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise InvalidRequest(f"inputs: {what} in base64 is expected") from None
