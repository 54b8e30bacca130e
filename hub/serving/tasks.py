"""Answers that are not generated text: vectors, classes, entities and more, as the Hugging Face inference API has them.

Imports torch: only an engine's process loads this.
"""

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import transformers
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from adapterhub.hub.errors import InvalidRequest
from adapterhub.hub.serving import entities
from adapterhub.hub.serving.loading import Loaded
from adapterhub.hub.serving.protocol import Task
from adapterhub.hub.serving.sounds import MAX_SECONDS, samples, wav

MAX_TEXTS = 256
"""Texts in one request, or pieces of them."""
MAX_FILLED = 10_000
"""Texts with a word filled in that one request may ask for."""
MAX_CHARACTERS = 4096
"""Characters of a text that is spoken."""
MAX_PIXELS = 64 << 20
"""Pixels of an image that is decoded."""
TOP_K = 5
"""Classes or words that are told where the request does not say how many."""


def run(loaded: Loaded, request: Task) -> Any:
    """The output of a task, JSON values only. Raises InvalidRequest for what the model or the inputs do not allow."""
    task = _TASKS.get(request.task)
    if task is None:
        raise InvalidRequest(f"{request.task}: no such task here; there are {', '.join(sorted(_TASKS))}")
    return task(loaded, request)


def embeddings(loaded: Loaded, request: Task) -> Any:
    """One vector (d) of each text or list of token ids, and how many tokens they have together: {vectors, tokens}.

    Pooled as a sentence encoder's files say, else the mean of the last hidden states. Parameters: dimensions keeps the
    first numbers of each, for models that were trained so. Raises InvalidRequest for inputs beyond the context.
    Source: platform.openai.com/docs/api-reference/embeddings; arXiv:2205.13147 for dimensions.
    """
    dimensions = request.parameters.get("dimensions")
    vectors, tokens = [], 0
    given: Sequence[Any] = request.inputs or ()
    for number, one in enumerate(given):
        inputs = _whole(loaded, one, f"input[{number}]")
        hidden = _hidden(loaded, inputs)[0].float()  # (tokens, d)
        vector = hidden[0] if loaded.pooling == "cls" else hidden.mean(0)
        if dimensions is not None and dimensions > len(vector):
            raise InvalidRequest(f"dimensions: {dimensions}; this model's vectors have {len(vector)} numbers")
        vector = vector[:dimensions]
        vectors.append((torch.nn.functional.normalize(vector, dim=-1) if loaded.is_normalized else vector).tolist())
        tokens += inputs["input_ids"].shape[1]
    return {"vectors": vectors, "tokens": tokens}


def _whole(loaded: Loaded, one: str | Sequence[int], name: str) -> dict[str, Any]:
    """The model's arguments for a text or token ids, none of them left out."""
    if isinstance(one, str):
        inputs = _encoded(loaded, one, is_cut=False)
    else:
        table: Any = loaded.model.get_input_embeddings()
        vocabulary = table.num_embeddings
        if not all(0 <= token < vocabulary for token in one):
            raise InvalidRequest(f"{name}: token ids from 0 to {vocabulary - 1} are expected")
        ids = torch.tensor([one], device=loaded.model.device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    context = _context(loaded)
    length = inputs["input_ids"].shape[1]
    if context is not None and length > context:
        raise InvalidRequest(f"{name}: {length} tokens; this model reads {context}")
    return inputs


def feature_extraction(loaded: Loaded, request: Task) -> Any:
    """A sentence encoder's vector (d) of each text; of any other model the vectors of its tokens, (1, tokens, d).

    Parameters: normalize scales vectors to length 1. A list of texts gives a list of the same.
    Source: huggingface_hub InferenceClient.feature_extraction; transformers' pipeline of that name.
    """
    texts, is_list = _texts(request)
    normalize = bool(request.parameters.get("normalize")) or loaded.is_normalized
    vectors = [_vectors(loaded, text, normalize=normalize).tolist() for text in texts]
    return vectors if is_list else vectors[0]


def _vectors(loaded: Loaded, text: str, *, normalize: bool) -> Tensor:
    hidden = _hidden(loaded, _encoded(loaded, text)).float()  # (1, tokens, d)
    if loaded.pooling == "cls":
        hidden = hidden[0, 0]
    elif loaded.pooling == "mean":
        hidden = hidden[0].mean(0)
    return torch.nn.functional.normalize(hidden, dim=-1) if normalize else hidden


def _hidden(loaded: Loaded, inputs: Mapping[str, Tensor]) -> Tensor:
    """The last hidden states of the text's own tokens (1, tokens, d).

    A model without patches need not compute its head; a patch may act on calls of the whole model alone.
    """
    if not loaded.is_patched:
        encoder = getattr(loaded.model, "base_model", loaded.model)
        found: Tensor = encoder(**inputs).last_hidden_state
        return found
    output = loaded.model(**inputs, output_hidden_states=True)
    hidden: Tensor = output["last_hidden_state"] if "last_hidden_state" in output else output["hidden_states"][-1]
    return hidden[:, -inputs["input_ids"].shape[1] :]


def text_classification(loaded: Loaded, request: Task) -> Any:
    """The likeliest classes of each text, a list of {label, score} for each.

    Parameters: top_k, function_to_apply. A language model under a contract with a pattern and a verbalizer classifies
    by the words that it puts in. Source: huggingface_hub InferenceClient.text_classification.
    """
    texts, _ = _texts(request)
    if "pattern" in loaded.contract and "verbalizer" in loaded.contract:
        return [_worded(loaded, text, request.parameters) for text in texts]
    _need_head(loaded, "ForSequenceClassification", request.task)
    return [_classes(loaded, loaded.model(**_encoded(loaded, text)).logits[0], request.parameters) for text in texts]


def _worded(loaded: Loaded, text: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Classes by the likelihood of their words at the mask of the pattern, or after it in a model that has no mask.

    Source: arXiv:2001.07676 sec. 3.1 (PET): a softmax over the words of the verbalizer alone.
    """
    tokenizer: Any = loaded.tokenizer
    words = loaded.contract["verbalizer"]
    pattern = loaded.contract["pattern"].replace("{text}", text)
    mask = tokenizer.mask_token
    if "{mask}" in pattern and mask is None:
        # a model that reads from left to right says the word where the pattern breaks off
        pattern = pattern.partition("{mask}")[0].rstrip()
    inputs = _encoded(loaded, pattern.replace("{mask}", mask or ""))
    places = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero() if mask else []
    at = int(places[0]) if len(places) else -1
    logits = loaded.model(**inputs).logits[0, -inputs["input_ids"].shape[1] :][at].float()  # (vocabulary)
    tokens = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words.values()]
    return _told(logits[tokens].softmax(-1), list(words), parameters)


def token_classification(loaded: Loaded, request: Task) -> Any:
    """The entities of a text, {entity, score, index, word, start, end} of each token, or grouped with entity_group.

    Parameters: aggregation_strategy, "none" or "simple"; ignore_labels, ["O"] where it is missing; stride: a text
    beyond the model's context is read in pieces that share so many tokens, else what is beyond is left out. A list of
    texts gives a list of the same. Source: huggingface_hub InferenceClient.token_classification; transformers'
    pipeline of that name.
    """
    texts, is_list = _texts(request)
    _need_head(loaded, "ForTokenClassification", request.task)
    strategy = request.parameters.get("aggregation_strategy") or "none"
    stride = request.parameters.get("stride")
    if strategy not in ("none", "simple"):
        raise InvalidRequest(f"aggregation_strategy: {strategy!r}; none or simple are expected")
    if stride is not None and strategy == "none":
        raise InvalidRequest("stride: pieces of a text are joined with the aggregation_strategy simple alone")
    ignored = _words(request.parameters, "ignore_labels")
    pieces = [_pieces(loaded, text, stride) for text in texts]
    count = sum(len(one) for one in pieces)
    if count > MAX_TEXTS:
        raise InvalidRequest(f"inputs: {count} pieces with this stride; at most {MAX_TEXTS} are read in one request")
    found = []
    for text, parts in zip(texts, pieces, strict=True):
        told = [_tagged(loaded, text, part) for part in parts]
        if strategy == "simple":
            tokenizer: Any = loaded.tokenizer
            told = [entities.grouped(one, tokenizer.convert_tokens_to_string) for one in told]
        dropped = ("O",) if ignored is None else ignored
        kept = [one for part in told for one in part if one.get("entity", one.get("entity_group")) not in dropped]
        found.append(entities.without_overlaps(kept) if len(parts) > 1 else kept)
    return found if is_list else found[0]


def _pieces(loaded: Loaded, text: str, stride: int | None) -> list[dict[str, list[Any]]]:
    """What the tokenizer says of a text, of its beginning alone without a stride; each list has an item a token."""
    tokenizer = loaded.tokenizer
    if tokenizer is None or not tokenizer.is_fast:
        raise InvalidRequest("this model has no tokenizer.json, so it is not known where its tokens are in a text")
    context = _context(loaded)
    most = None if context is None else context - tokenizer.num_special_tokens_to_add()
    is_whole = isinstance(stride, int) and not isinstance(stride, bool)
    if stride is not None and not (is_whole and stride >= 0 and (most is None or stride < most)):
        raise InvalidRequest(f"stride: {stride!r}; a whole number from 0, below the model's {most} tokens, is expected")
    read: Any = tokenizer(
        text,
        truncation=context is not None,
        max_length=context,
        stride=stride or 0,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    if not read["input_ids"] or not read["input_ids"][0]:
        raise InvalidRequest("inputs: a text without any token")
    count = 1 if stride is None else len(read["input_ids"])
    names = {*tokenizer.model_input_names, "offset_mapping", "special_tokens_mask"} & set(read)
    return [{name: read[name][number] for name in names} for number in range(count)]


def _tagged(loaded: Loaded, text: str, piece: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """The likeliest tag of each token of a piece that is not special."""
    tokenizer: Any = loaded.tokenizer
    names = [name for name in tokenizer.model_input_names if name in piece]
    inputs = {name: torch.tensor([piece[name]], device=loaded.model.device) for name in names}
    ids = piece["input_ids"]
    logits = loaded.model(**inputs).logits[0, -len(ids) :]  # (tokens, classes)
    scores, classes = logits.float().softmax(-1).max(-1)
    labels = _labels(loaded, logits.shape[-1])
    words = tokenizer.convert_ids_to_tokens(ids)
    found = []
    for index, (score, one) in enumerate(zip(scores.tolist(), classes.tolist(), strict=True)):
        start, end = piece["offset_mapping"][index]
        if piece["special_tokens_mask"][index]:
            continue
        word = text[start:end] if ids[index] == tokenizer.unk_token_id else words[index]
        token = {"entity": labels[one], "score": score, "index": index, "word": word, "start": start, "end": end}
        found.append(token)
    return found


def fill_mask(loaded: Loaded, request: Task) -> Any:
    """The likeliest tokens at a text's mask, {score, token, token_str, sequence}; of several masks a list for each.

    Parameters: top_k; targets, texts whose first tokens alone are compared. Scores are of the whole vocabulary, and of
    each mask alone. A list of texts gives a list of the same. Raises InvalidRequest for a text without a mask or beyond
    the model's context. Source: huggingface_hub InferenceClient.fill_mask; transformers' pipeline of that name.
    """
    texts, is_list = _texts(request)
    _need_head(loaded, "ForMaskedLM", request.task)
    tokenizer: Any = loaded.tokenizer
    if tokenizer is None or tokenizer.mask_token_id is None:
        raise InvalidRequest(f"{request.task} needs a tokenizer with a mask token; this model's files have none")
    top_k, targets = _top_k(request.parameters), _targets(tokenizer, request.parameters)
    read = [_whole(loaded, text, "inputs") for text in texts]
    masks = [(one["input_ids"][0] == tokenizer.mask_token_id).nonzero()[:, 0] for one in read]
    for text, places in zip(texts, masks, strict=True):
        if len(places) == 0:
            raise InvalidRequest(f"inputs: no {tokenizer.mask_token} in {text[:80]!r}, where a word is to be filled in")
    count = sum(len(places) for places in masks)
    if count * min(top_k, len(targets or tokenizer)) > MAX_FILLED:
        raise InvalidRequest(f"top_k: {top_k} for {count} masks; at most {MAX_FILLED} filled texts are made")
    found = [_filled(loaded, one, places, top_k, targets) for one, places in zip(read, masks, strict=True)]
    return found if is_list else found[0]


def _filled(
    loaded: Loaded, inputs: Mapping[str, Any], places: Tensor, top_k: int, targets: Sequence[int] | None
) -> list[Any]:
    """The proposals for the mask at the one place, or a list of them for each place. places: (masks,)."""
    tokenizer: Any = loaded.tokenizer
    ids: list[int] = inputs["input_ids"][0].tolist()
    scores = loaded.model(**inputs).logits[0, -len(ids) :][places].float().softmax(-1)  # (masks, vocabulary)
    if targets is not None:
        scores = scores[:, list(targets)]
    values, tokens = scores.topk(min(top_k, scores.shape[1]))
    is_one = len(places) == 1
    found = []
    for place, likely, at in zip(places.tolist(), values.tolist(), tokens.tolist(), strict=True):
        row = []
        for score, number in zip(likely, at, strict=True):
            token = number if targets is None else targets[number]
            filled = [one for one in (*ids[:place], token, *ids[place + 1 :]) if one != tokenizer.pad_token_id]
            # the other masks are special tokens, and are to be seen
            sequence = tokenizer.decode(filled, skip_special_tokens=is_one)
            told = {"score": score, "token": token, "token_str": tokenizer.decode([token]), "sequence": sequence}
            row.append(told)
        found.append(row)
    return found[0] if is_one else found


def _targets(tokenizer: Any, parameters: Mapping[str, Any]) -> list[int] | None:
    """The tokens of the targets, each once: the target itself where it is a token, else the first of its tokens."""
    targets = parameters.get("targets")
    words = _words({"targets": [targets] if isinstance(targets, str) else targets}, "targets")
    if words is None:
        return None
    vocabulary = tokenizer.get_vocab()
    read = [[vocabulary[word]] if word in vocabulary else _ids(tokenizer, word) for word in words]
    found = {ids[0] for ids in read if ids}
    if not found:
        raise InvalidRequest(f"targets: {words!r}; at least one that the tokenizer knows is expected")
    return sorted(found)


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def image_classification(loaded: Loaded, request: Task) -> Any:
    """The likeliest classes of an image, a list of {label, score}.

    Parameters: top_k, function_to_apply. Source: huggingface_hub InferenceClient.image_classification.
    """
    _need_head(loaded, "ForImageClassification", request.task)
    if loaded.image_processor is None:
        raise InvalidRequest("this model has no preprocessor_config.json, so it is not known how it sees an image")
    channels = getattr(loaded.model.config, "num_channels", 3)
    image = _image(request.media, "L" if channels == 1 else "RGB")
    pixels = loaded.image_processor(image, return_tensors="pt")["pixel_values"]  # (1, channels, height, width)
    logits = loaded.model(pixel_values=pixels.to(loaded.model.device, loaded.model.dtype)).logits[0]
    return _classes(loaded, logits, request.parameters)


def audio_classification(loaded: Loaded, request: Task) -> Any:
    """The likeliest classes of a sound, a list of {label, score}.

    Parameters: top_k, function_to_apply. Source: huggingface_hub InferenceClient.audio_classification.
    """
    inputs = _heard(loaded, request)
    logits = getattr(loaded.model(**inputs), "logits", None)
    if logits is None or logits.dim() != 2:
        raise InvalidRequest(
            f"{request.task} needs a model with a classifier; this one is {type(loaded.model).__name__}"
        )
    return _classes(loaded, logits[0], request.parameters)


def speech_recognition(loaded: Loaded, request: Task) -> Any:
    """What is said in a sound, {"text"}: the likeliest token at each moment (CTC), or a text generated greedily.

    Source: huggingface_hub InferenceClient.automatic_speech_recognition; CTC: Graves et al. 2006, best path decoding.
    """
    tokenizer: Any = loaded.tokenizer
    is_ctc = type(loaded.model).__name__.endswith("ForCTC")
    if tokenizer is None or not (is_ctc or loaded.model.config.is_encoder_decoder):
        raise InvalidRequest(f"{type(loaded.model).__name__} with its files does not recognise speech")
    inputs = _heard(loaded, request)
    if not is_ctc:
        model: Any = loaded.model
        return {"text": tokenizer.decode(model.generate(**inputs, do_sample=False)[0], skip_special_tokens=True)}
    tokens = loaded.model(**inputs).logits[0].argmax(-1)
    if isinstance(tokenizer, transformers.Wav2Vec2CTCTokenizer):
        return {"text": tokenizer.decode(tokens.tolist())}
    tokens = tokens.unique_consecutive()
    spoken = tokens[tokens != loaded.model.config.pad_token_id]
    return {"text": tokenizer.decode(spoken.tolist(), skip_special_tokens=True)}


def text_to_speech(loaded: Loaded, request: Task) -> Any:
    """A text spoken by a VITS model, {"audio": a WAV file in base64, "sampling_rate"}.

    Parameters: seed, 0 where it is missing, of the noise that voice and rhythm are drawn with; speaker_id, of a model
    of several speakers. Raises InvalidRequest for other parameters, texts that are too long, and speech of more than
    MAX_SECONDS, before it is computed. Source: huggingface_hub InferenceClient.text_to_speech; arXiv:2106.06103.
    """
    _need_head(loaded, "VitsModel", request.task)
    unknown = sorted(set(request.parameters) - {"seed", "speaker_id"})
    if unknown:
        raise InvalidRequest(f"{', '.join(unknown)}: this model speaks without; it takes seed and speaker_id")
    model: Any = loaded.model
    seed = _number(request.parameters, "seed", 2**63)
    speaker = _number(request.parameters, "speaker_id", model.config.num_speakers)
    text = request.inputs
    if not isinstance(text, str) or len(text) > MAX_CHARACTERS:
        raise InvalidRequest(f"inputs: one text of at most {MAX_CHARACTERS} characters is expected")
    try:
        inputs = _encoded(loaded, text)
    except ImportError as error:
        raise InvalidRequest(f"this model's tokenizer needs a package that is not installed: {error}") from error
    is_cuda = model.device.type == "cuda"
    hook = model.duration_predictor.register_forward_hook(lambda *called: _check_duration(model, called[-1]))
    try:
        # the model draws its noise from torch's own generator
        with torch.random.fork_rng(devices=[model.device] if is_cuda else []):
            torch.manual_seed(seed or 0)
            sound = model(**inputs, speaker_id=speaker).waveform[0].float().cpu().numpy()  # (samples,)
    finally:
        hook.remove()
    rate = model.config.sampling_rate
    return {"audio": base64.b64encode(wav(sound, rate)).decode(), "sampling_rate": rate}


def _check_duration(model: Any, log_duration: Tensor) -> None:
    """Raises InvalidRequest for more than MAX_SECONDS. log_duration: (1, 1, tokens), of frames."""
    frames = float(torch.ceil(log_duration.double().exp() / model.speaking_rate).sum())
    seconds = frames * math.prod(model.config.upsample_rates) / model.config.sampling_rate
    if not seconds <= MAX_SECONDS:
        raise InvalidRequest(f"inputs: the text takes {seconds:.0f} s to speak; at most {MAX_SECONDS} s are made")


def _number(parameters: Mapping[str, Any], name: str, end: int) -> int | None:
    """A parameter that is a whole number from 0 to below end, None where it is missing."""
    found = parameters.get(name)
    if found is not None and not (isinstance(found, int) and not isinstance(found, bool) and 0 <= found < end):
        raise InvalidRequest(f"{name}: {found!r}; a whole number from 0 to {end - 1} is expected")
    return found


def _heard(loaded: Loaded, request: Task) -> dict[str, Any]:
    """The arguments of the model for the sound of a request."""
    if loaded.sound_processor is None:
        raise InvalidRequest("this model has no preprocessor_config.json for sounds, so it is not known how it hears")
    rate = loaded.sound_processor.sampling_rate
    found = loaded.sound_processor(samples(request.media, rate), sampling_rate=rate, return_tensors="pt")
    kept = {name: found[name] for name in ("input_values", "input_features") if name in found}
    return {name: one.to(loaded.model.device, loaded.model.dtype) for name, one in kept.items()}


def _image(data: bytes | None, mode: str) -> Image.Image:
    if not data:
        raise InvalidRequest("inputs: an image is expected")
    try:
        image = Image.open(io.BytesIO(data))
        if image.width * image.height > MAX_PIXELS:
            raise InvalidRequest(f"inputs: {image.width}×{image.height} pixels; at most {MAX_PIXELS} are read")
        return image.convert(mode)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise InvalidRequest(f"inputs: not an image that can be read: {error}") from error


def _need_head(loaded: Loaded, head: str, task: str) -> None:
    found = type(loaded.model).__name__
    if not found.endswith(head):
        raise InvalidRequest(f"{task} needs a model with the head for it; this one is {found}")


def _texts(request: Task) -> tuple[Sequence[str], bool]:
    inputs = request.inputs
    texts = [inputs] if isinstance(inputs, str) else [one for one in inputs or () if isinstance(one, str)]
    if not texts or len(texts) > MAX_TEXTS:
        raise InvalidRequest(f"inputs: a text or 1 to {MAX_TEXTS} texts are expected, {len(texts)} were sent")
    return texts, not isinstance(inputs, str)


def _words(parameters: Mapping[str, Any], name: str) -> list[str] | None:
    """A parameter that is a list of texts, None where it is missing."""
    found = parameters.get(name)
    if found is not None and not (isinstance(found, list) and all(isinstance(one, str) for one in found)):
        raise InvalidRequest(f"{name}: {found!r}; a list of texts is expected")
    return found


def _context(loaded: Loaded) -> int | None:
    """Tokens of a text that the model reads, None where it does not say."""
    places: int | None = getattr(loaded.model.config, "max_position_embeddings", None)
    if places is None:
        return None
    encoder = getattr(loaded.model, "base_model", loaded.model)
    table = getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    # RoBERTa and its like give the first token the place behind the padding's
    return places - loaded.virtual_tokens - (0 if padding is None else padding + 1)


def _encoded(loaded: Loaded, text: str, *, is_cut: bool = True) -> dict[str, Any]:
    """The model's arguments for a text; is_cut: without what is beyond the model's context."""
    if loaded.tokenizer is None:
        raise InvalidRequest("this model has no tokenizer files (tokenizer.json), so it cannot read text")
    context = _context(loaded) if is_cut else None
    encoded = loaded.tokenizer(text, return_tensors="pt", truncation=context is not None, max_length=context)
    if encoded["input_ids"].shape[1] == 0:
        raise InvalidRequest("inputs: a text without any token")
    return {name: tensor.to(loaded.model.device) for name, tensor in encoded.items()}


def _classes(loaded: Loaded, logits: Tensor, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The top_k classes by score, each {label, score}. logits: (classes,)."""
    scores = _scores(loaded, logits.float(), parameters.get("function_to_apply"))
    return _told(scores, _labels(loaded, scores.shape[0]), parameters)


def _labels(loaded: Loaded, count: int) -> list[str]:
    """The names of the classes, as the patches' contract has them, else config.json."""
    named: Mapping[Any, str] = loaded.contract.get("label_map") or loaded.model.config.id2label or {}
    labels = {int(one): name for one, name in named.items()}
    return [labels.get(one, f"LABEL_{one}") for one in range(count)]


def _told(scores: Tensor, labels: Sequence[str], parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    values, classes = scores.topk(min(_top_k(parameters), scores.shape[0]))
    return [
        {"label": labels[one], "score": value} for one, value in zip(classes.tolist(), values.tolist(), strict=True)
    ]


def _top_k(parameters: Mapping[str, Any]) -> int:
    top_k = parameters.get("top_k") or TOP_K
    if not isinstance(top_k, int) or top_k < 1:
        raise InvalidRequest(f"top_k: {top_k!r}; a whole number from 1 is expected")
    return top_k


def _scores(loaded: Loaded, logits: Tensor, function: str | None) -> Tensor:
    is_multi = getattr(loaded.model.config, "problem_type", None) == "multi_label_classification"
    chosen = function or ("sigmoid" if is_multi or logits.shape[0] == 1 else "softmax")
    if chosen not in ("softmax", "sigmoid", "none"):
        raise InvalidRequest(f"function_to_apply: {chosen!r}; softmax, sigmoid or none are expected")
    if chosen == "none":
        return logits
    return logits.softmax(-1) if chosen == "softmax" else logits.sigmoid()


_TASKS: Mapping[str, Callable[[Loaded, Task], Any]] = {
    "audio-classification": audio_classification,
    "embeddings": embeddings,
    "automatic-speech-recognition": speech_recognition,
    "feature-extraction": feature_extraction,
    "fill-mask": fill_mask,
    "image-classification": image_classification,
    "text-classification": text_classification,
    "text-to-speech": text_to_speech,
    "token-classification": token_classification,
}
