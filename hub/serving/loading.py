"""Reads a transformers model from the files of a repository without trusting any of them.

The library sees a folder of links to exactly the files it may read: safetensors, and configurations rewritten without
the keys that name code. Weights that are missing are refused, where the library would fill them with random numbers.
Imports torch: only an engine's process loads this.
"""

import json
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

import torch
import transformers
from transformers.models.auto import modeling_auto

from adapterhub.hub.errors import InvalidRequest
from adapterhub.hub.serving import packed
from adapterhub.merging.checkpoint import Checkpoint
from adapterhub.merging.errors import MergingError
from adapterhub.merging.folders import Folder, join, read_json
from adapterhub.merging.quantised import Packed

if TYPE_CHECKING:
    from adapterhub.hub.serving.mixture import Adapter

_LINKED_SUFFIXES = (".safetensors", ".json", ".txt", ".model", ".jinja")
_REWRITTEN = frozenset(
    {
        "config.json",
        "generation_config.json",
        "tokenizer_config.json",
        "preprocessor_config.json",
        "processor_config.json",
    }
)
_KEYS_THAT_NAME_CODE = frozenset(
    {
        "auto_map",
        "custom_pipelines",
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_internal",
        "experts_implementation",
        "_experts_implementation",
        "use_kernels",
        "_name_or_path",
    }
)

_HEADS: tuple[tuple[Any, Mapping[str, Any]], ...] = (
    (transformers.AutoModelForCausalLM, modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    (transformers.AutoModelForSequenceClassification, modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
    (transformers.AutoModelForTokenClassification, modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES),
    (transformers.AutoModelForImageClassification, modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES),
    (transformers.AutoModelForSeq2SeqLM, modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
    (transformers.AutoModelForSpeechSeq2Seq, modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES),
    (transformers.AutoModelForCTC, modeling_auto.MODEL_FOR_CTC_MAPPING_NAMES),
    (transformers.AutoModelForAudioClassification, modeling_auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES),
    (transformers.AutoModelForMaskedLM, modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES),
    (transformers.AutoModel, modeling_auto.MODEL_MAPPING_NAMES),
)
"""The heads that can be served; a repository's `architectures` chooses among them and imports nothing."""

_one_at_a_time = threading.Lock()


class Stored(Protocol):
    """Where a model lies: the name in messages, the files, and the sub-folder of the model."""

    @property
    def name(self) -> str: ...

    @property
    def folder(self) -> Folder: ...

    @property
    def path(self) -> str: ...


@dataclass(frozen=True)
class Loaded:
    """A model as its repository describes it, and the files that prepare its inputs, None where there are none.

    pooling: "mean" or "cls" for a sentence encoder, None for any other; is_normalized: its vectors have length 1.
    is_patched: run-time patches are on the whole model while it computes. virtual_tokens: those that they put before a
    text's own. contract: how the patches want the model used, by the keys of patch.json's contract. before_pass: called
    before each pass of the model with one row. adapter: what that row goes through beside the weights.
    """

    model: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerBase | None
    image_processor: Any | None
    sound_processor: Any | None
    pooling: str | None
    is_normalized: bool
    is_patched: bool = False
    virtual_tokens: int = 0
    contract: Mapping[str, Any] = field(default_factory=dict)
    before_pass: Callable[[], None] = lambda: None
    adapter: "Adapter | None" = None


def load(source: Stored, device: torch.device) -> Loaded:
    """The model of a repository on `device`, in the dtype of its files, with everything that belongs to it.

    Raises InvalidRequest, naming the file, for what cannot be served: no weights in safetensors, an architecture that
    transformers does not have or that needs code of the repository, quantised or missing weights.
    """
    # the library sets torch's default dtype, which is the whole process's, while it builds a model
    with _one_at_a_time, _linked(source.folder, source.path) as folder:
        model = _model(folder, source.name, device, _packed(source))
        pooling, is_normalized = _pooling(source.folder, source.path)
        return Loaded(
            model=model,
            tokenizer=_tokenizer(folder, source.name),
            image_processor=_preprocessor(folder, source.name, _IMAGES),
            sound_processor=_preprocessor(folder, source.name, _SOUNDS),
            pooling=pooling,
            is_normalized=is_normalized,
        )


def described(source: Stored, make: Callable[[transformers.PreTrainedConfig], Any]) -> Loaded:
    """What a repository says of a model that is not read from it: its configuration, of which `make` makes what stands
    for the model, and its tokenizer.

    Raises InvalidRequest for files that do not say it.
    """
    with _one_at_a_time, _linked(source.folder, source.path) as folder:
        if not Path(folder, "config.json").is_file():
            raise InvalidRequest(f"{source.name}: no config.json, so its vocabulary and context are unknown")
        try:
            config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidRequest(f"{source.name}: transformers does not read it: {_first_line(error)}") from error
        tokenizer = _tokenizer(folder, source.name)
        return Loaded(make(config), tokenizer, None, None, pooling=None, is_normalized=False)


def checkpoint(source: Stored) -> Checkpoint:
    """The names and shapes in a repository's weight files, headers read and nothing else.

    Raises InvalidRequest for a repository without sound safetensors.
    """
    try:
        return Checkpoint.open(source.folder, source.path, name=source.name)
    except MergingError as error:
        raise InvalidRequest(str(error)) from error


def _packed(source: Stored) -> Mapping[str, Packed]:
    """The weights that are stored in few bits. Raises InvalidRequest for those that are not read."""
    try:
        return packed.packed_weights(checkpoint(source))
    except MergingError as error:
        raise InvalidRequest(str(error)) from error


def _linked(folder: Folder, prefix: str) -> AbstractContextManager[str]:
    """A temporary folder with what the library may see of `prefix`."""
    made = tempfile.TemporaryDirectory(prefix="adapterhub-model-")
    for name in folder.names():
        path = PurePosixPath(name)
        if path.parent.as_posix() != (prefix or ".") or not path.name.endswith(_LINKED_SUFFIXES):
            continue
        if path.name in _REWRITTEN:
            text = json.dumps(_without_code(read_json(folder, name)))
            Path(made.name, path.name).write_text(text, encoding="utf-8")
        else:
            Path(made.name, path.name).symlink_to(folder.path(name).resolve())
    return made


def _without_code(value: Any) -> Any:
    """`value` without any key that makes the library import, fetch or run something."""
    if isinstance(value, dict):
        return {key: _without_code(item) for key, item in value.items() if key not in _KEYS_THAT_NAME_CODE}
    return [_without_code(item) for item in value] if isinstance(value, list) else value


def _model(folder: str, name: str, device: torch.device, weights: Mapping[str, Packed]) -> transformers.PreTrainedModel:
    if not Path(folder, "config.json").is_file():
        raise InvalidRequest(f"{name}: no config.json, so this is not a model that can be served")
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        head = _head(config, name)
        if weights:
            config.quantization_config = packed.configured(weights)
        model, report = head.from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            dtype=packed.dtype_of(weights) if weights else "auto",
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, ImportError) as error:
        raise InvalidRequest(f"{name}: transformers does not load it: {_first_line(error)}") from error
    lacking = sorted(key for key in report["missing_keys"] if "pooler." not in key)
    if lacking or report["mismatched_keys"]:
        wrong = lacking or sorted(str(key) for key in report["mismatched_keys"])
        raise InvalidRequest(
            f"{name}: the weight files lack {wrong[0]} ({len(wrong)} in all) as config.json describes the model"
        )
    packed.fill(model, weights)
    loaded: transformers.PreTrainedModel = model.to(device).eval().requires_grad_(False)
    return loaded


def _head(config: Any, name: str) -> Any:
    architecture = (config.architectures or [None])[0]
    for head, names in _HEADS:
        known = names.get(config.model_type, ())
        if architecture is None or architecture in ((known,) if isinstance(known, str) else known):
            return head if architecture else transformers.AutoModel
    served = "language models, classifiers of texts, tokens, images and sounds, models of speech, and encoders"
    raise InvalidRequest(f"{name}: architecture {architecture!r} is not served; served are {served}")


def _tokenizer(folder: str, name: str) -> transformers.PreTrainedTokenizerBase | None:
    has_one = any(
        Path(folder, file).is_file() for file in ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model")
    )
    if not has_one:
        return None
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, ImportError) as error:
        raise InvalidRequest(f"{name}: its tokenizer does not load: {_first_line(error)}") from error


_IMAGES = (transformers.AutoImageProcessor, lambda config: "feature_extractor_type" not in config)
_SOUNDS = (transformers.AutoFeatureExtractor, lambda config: "feature_extractor_type" in config)


def _preprocessor(folder: str, name: str, kind: tuple[Any, Callable[[Mapping[str, Any]], bool]]) -> Any | None:
    """What prepares images or sounds, None where preprocessor_config.json is for the other or missing."""
    processor, is_for = kind
    file = Path(folder, "preprocessor_config.json")
    if not file.is_file() or not is_for(json.loads(file.read_text(encoding="utf-8"))):
        return None
    try:
        return processor.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, ImportError) as error:
        raise InvalidRequest(f"{name}: preprocessor_config.json does not load: {_first_line(error)}") from error


def _pooling(folder: Folder, prefix: str) -> tuple[str | None, bool]:
    """How a sentence encoder makes one vector of its tokens, and whether it is normalised.

    Source: sentence_transformers' modules.json, a list of modules by folder, and 1_Pooling/config.json.
    """
    file = join(prefix, "1_Pooling/config.json")
    if file not in folder.names():
        return None, False
    pooling = "cls" if read_json(folder, file).get("pooling_mode_cls_token") else "mean"
    modules = join(prefix, "modules.json")
    is_normalized = modules in folder.names() and b"sentence_transformers.models.Normalize" in folder.read(modules)
    return pooling, is_normalized


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
