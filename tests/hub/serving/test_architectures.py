"""A LoRA on each architecture: told by its facts, merged as peft merges it, and served with the answer of its task."""

import io
import wave
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from PIL import Image

from adapterhub.hub.serving.protocol import Delta, Task, VariantSpec
from adapterhub.hub.serving.variants import planned
from adapterhub.merging import engine as merging
from adapterhub.merging import patches
from adapterhub.merging.checkpoint import LocalFolder
from tests.hub.serving import models
from tests.hub.serving.conftest import EngineOnALoop
from tests.hub.serving.test_runtime import ASKED
from tests.merging.exactness.architectures import ARCHITECTURES, Architecture
from tests.merging.exactness.compare import trained

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False but the target module is `Conv1D`"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
RATE = 16_000


def sound() -> Any:
    """A quarter of a second of two tones, as float32."""
    at = np.arange(RATE // 4) / RATE
    return (0.4 * np.sin(2 * np.pi * 440 * at) + 0.2 * np.sin(2 * np.pi * 1330 * at)).astype(np.float32)


def wav() -> bytes:
    """The same sound as a file of 16 bits."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes((sound() * 32768).astype("<i2").tobytes())
    return file.getvalue()


def heard() -> Any:
    """The sound as it is read back from the file."""
    return ((sound() * 32768).astype("<i2") / 32768).astype(np.float32)


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).save(file, "PNG")
    return file.getvalue()


_LIBRARY: Any = transformers
PROCESSORS: dict[str, Callable[[], Any]] = {
    "vit": lambda: _LIBRARY.ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.5]),
    "whisper": lambda: _LIBRARY.WhisperFeatureExtractor(
        feature_size=4, sampling_rate=RATE, hop_length=1000, chunk_length=1, n_fft=2000
    ),
    "wav2vec2": lambda: _LIBRARY.Wav2Vec2FeatureExtractor(sampling_rate=RATE),
    "w2v-bert": lambda: _LIBRARY.SeamlessM4TFeatureExtractor(feature_size=4, num_mel_bins=4, stride=2),
    "ast": lambda: _LIBRARY.ASTFeatureExtractor(num_mel_bins=8, max_length=16),
}


def base_of(architecture: Architecture, folder: Path) -> Path:
    """A model with the files that prepare its inputs; it never ends a text by itself."""
    has_tokens = "vocab_size" in architecture.sizes
    sizes: dict[str, Any] = {"vocab_size": models.VOCABULARY} if has_tokens else {}
    model: Any = architecture.make(**sizes)
    if model.can_generate():
        model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    if has_tokens:
        models.tokenizer().save_pretrained(folder)
    if architecture.name in PROCESSORS:
        PROCESSORS[architecture.name]().save_pretrained(folder)
    return folder


def tuned_on(architecture: Architecture, base: Path, folder: Path) -> Any:
    """peft's merge of a LoRA of random numbers that it saved to `folder`."""
    kinds = {"t5": "SEQ_2_SEQ_LM", "mt5": "SEQ_2_SEQ_LM", "bert": "SEQ_CLS", "electra": "SEQ_CLS"}
    is_causal = architecture.model.endswith(("CausalLM", "LMHeadModel"))
    config = peft.LoraConfig(
        task_type=kinds.get(architecture.name, "CAUSAL_LM" if is_causal else None),
        r=2,
        lora_alpha=6,
        target_modules=list(architecture.linear),
        fan_in_fan_out=architecture.has_conv1d,
    )
    trained(architecture.loader.from_pretrained(base), config, folder, std=0.3)
    return peft.PeftModel.from_pretrained(architecture.loader.from_pretrained(base), str(folder)).merge_and_unload()


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_a_lora_is_read_merged_and_served_as_peft_has_it(engine: EngineOnALoop, name: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES[name]
    base = base_of(architecture, tmp_path / "base")
    merged = tuned_on(architecture, base, tmp_path / "lora").eval()

    (facts,) = patches.inspect(LocalFolder(tmp_path / "lora"))
    assert (facts.kind, facts.problems, facts.rank_min, facts.rank_max) == ("lora", (), 2, 2)
    assert facts.base.name == "tiny/base"

    sources = models.source(f"demo/{name}", base), models.source(f"demo/{name}-lora", tmp_path / "lora", "lora")
    spec = models.spec(f"demo/{name} + demo/{name}-lora", *sources)
    merging.run(planned(spec, 1 << 30), tmp_path / "out")
    again = architecture.loader.from_pretrained(tmp_path / "out").state_dict()
    for key, value in merged.state_dict().items():
        torch.testing.assert_close(again[key], value, rtol=1e-5, atol=1e-6)

    bare = models.spec(f"demo/{name}", sources[0])
    tuned = served(engine, architecture, spec, merged)
    assert tuned
    assert tuned != served(engine, architecture, bare, architecture.loader.from_pretrained(base).eval())


def served(engine: EngineOnALoop, architecture: Architecture, spec: VariantSpec, model: Any) -> Any:
    """The engine's answer of the architecture's task, compared with the library's."""
    if architecture.name in ("whisper", "wav2vec2", "w2v-bert"):
        told = engine.run(engine.client.task(spec, Task("automatic-speech-recognition", media=wav()))).output
        assert told == {"text": spoken(model, PROCESSORS[architecture.name]())}
        return told
    if architecture.name in ("vit", "ast"):
        is_image = architecture.name == "vit"
        task = Task("image-classification" if is_image else "audio-classification", media=png() if is_image else wav())
        return compared(engine.run(engine.client.task(spec, task)).output, model, seen(architecture.name))
    if architecture.name in ("bert", "electra"):
        told = engine.run(engine.client.task(spec, Task("text-classification", "fine"))).output[0]
        return compared(told, model, models.tokenizer()("fine", return_tensors="pt"))
    return generated(engine, spec, model)


def generated(engine: EngineOnALoop, spec: VariantSpec, model: Any) -> list[float]:
    """The log probabilities of the generated tokens, once text and numbers are those of the library."""
    ids = models.tokenizer()("hello", return_tensors="pt")["input_ids"]
    options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": models.END}
    out = model.generate(input_ids=ids, **options, output_logits=True, return_dict_in_generate=True)
    tokens = out.sequences[0, -len(out.logits) :]
    expected = [
        float(logits[0].float().log_softmax(-1)[token]) for logits, token in zip(out.logits, tokens, strict=True)
    ]

    async def told() -> list[Any]:
        return [event async for event in engine.client.generate(spec, replace(ASKED, logprobs=0))]

    pieces = [event for event in engine.run(told()) if isinstance(event, Delta)]
    assert "".join(one.text for one in pieces) == models.tokenizer().decode(tokens, skip_special_tokens=True)
    found = [one.logprob or 0.0 for piece in pieces for one in piece.logprobs]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    return found


def seen(name: str) -> Any:
    """The model's inputs for the image or the sound."""
    if name == "vit":
        return PROCESSORS[name]()(Image.open(io.BytesIO(png())).convert("L"), return_tensors="pt")
    return PROCESSORS[name]()(heard(), sampling_rate=RATE, return_tensors="pt")


def compared(told: Any, model: Any, inputs: Any) -> Any:
    """The classes told, once they are those of the library."""
    with torch.no_grad():
        scores = model(**inputs).logits[0].softmax(-1)
    found = {one["label"]: one["score"] for one in told}
    assert len(found) == len(scores)
    for number, score in enumerate(scores.tolist()):
        assert found[model.config.id2label[number]] == pytest.approx(score, rel=1e-4)
    return told


def spoken(model: Any, processor: Any) -> str:
    """What the library hears, its CTC path collapsed by hand."""
    inputs = processor(heard(), sampling_rate=RATE, return_tensors="pt")
    inputs = {name: inputs[name] for name in ("input_values", "input_features") if name in inputs}
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            tokens = model.generate(**inputs, do_sample=False)[0].tolist()
        else:
            path = model(**inputs).logits[0].argmax(-1).tolist()
            kept = [one for at, one in enumerate(path) if at == 0 or path[at - 1] != one]
            tokens = [one for one in kept if one != model.config.pad_token_id]
    return str(models.tokenizer().decode(tokens, skip_special_tokens=True))
