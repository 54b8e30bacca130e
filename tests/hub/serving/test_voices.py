"""Speech, as transformers' own VITS makes it with the same seed."""

import base64
import io
import wave
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from adapterhub.hub.errors import InvalidRequest
from adapterhub.hub.serving import sounds
from adapterhub.hub.serving.protocol import Task, VariantSpec
from tests.hub.serving import models
from tests.hub.serving.conftest import EngineOnALoop
from tests.merging.exactness.compare import trained

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
TEXT = "Hello, you there"


def voice_lora(base: Path, folder: Path) -> Any:
    """peft's merge of a LoRA of random numbers that it saved to `folder`."""
    library: Any = transformers.VitsModel
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "v_proj", "out_proj"])
    trained(library.from_pretrained(base), config, folder, std=0.5)
    return peft.PeftModel.from_pretrained(library.from_pretrained(base), str(folder)).merge_and_unload().eval()


def spoken(model: Any, folder: Path, seed: int = 0, **more: Any) -> Any:
    """The library's sound, (samples,)."""
    tokenizer: Any = transformers.VitsTokenizer.from_pretrained(folder)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        return model(**tokenizer(TEXT, return_tensors="pt"), **more).waveform[0].numpy()


def assert_sounds_like(file: bytes, expected: Any) -> None:
    """The numbers in the file, but for the rounding to 16 bits and that of two processes."""
    with wave.open(io.BytesIO(file)) as read:
        assert (read.getframerate(), read.getsampwidth(), read.getnchannels()) == (16_000, 2, 1)
        found = np.frombuffer(read.readframes(read.getnframes()), "<i2") / 32767
    assert len(expected) > 100
    assert np.std(expected) > 1e-3
    np.testing.assert_allclose(found, expected, atol=1e-4)


def told(engine: EngineOnALoop, spec: VariantSpec, text: str = TEXT, **parameters: Any) -> bytes:
    output = engine.run(engine.client.task(spec, Task("text-to-speech", text, parameters=parameters))).output
    assert output["sampling_rate"] == 16_000
    return base64.b64decode(output["audio"])


def test_a_text_is_spoken_as_transformers_does_and_a_lora_changes_the_voice(
    engine: EngineOnALoop, tmp_path: Path
) -> None:
    folder = models.vits(tmp_path / "vits")
    merged = voice_lora(folder, tmp_path / "lora")
    library: Any = transformers.VitsModel.from_pretrained(folder)
    library.eval()
    base, lora = models.source("demo/vits", folder), models.source("demo/voice", tmp_path / "lora", "lora")
    bare, tuned = models.spec("demo/vits", base), models.spec("demo/vits + demo/voice", base, lora)
    for seed in (0, 7):
        assert_sounds_like(told(engine, bare, seed=seed), spoken(library, folder, seed))
        assert_sounds_like(told(engine, tuned, seed=seed), spoken(merged, folder, seed))
    assert told(engine, bare) == told(engine, bare, seed=0) != told(engine, bare, seed=7)
    assert told(engine, bare) != told(engine, tuned)


def test_a_speaker_is_chosen(engine: EngineOnALoop, tmp_path: Path) -> None:
    folder = models.vits(tmp_path / "speakers", speakers=3)
    library: Any = transformers.VitsModel.from_pretrained(folder)
    library.eval()
    spec = models.spec("demo/speakers", models.source("demo/speakers", folder))
    assert_sounds_like(told(engine, spec, speaker_id=2), spoken(library, folder, speaker_id=2))
    assert told(engine, spec, speaker_id=2) != told(engine, spec, speaker_id=1)
    with pytest.raises(InvalidRequest, match="speaker_id: 3; a whole number from 0 to 2"):
        told(engine, spec, speaker_id=3)


def test_what_is_not_spoken_is_refused_in_words(engine: EngineOnALoop, tmp_path: Path) -> None:
    spec = models.spec("demo/vits", models.source("demo/vits", models.vits(tmp_path / "vits")))
    for text, asked, says in (
        ("hello", {"temperature": 0.5}, "temperature: this model speaks without"),
        ("hello", {"seed": -1}, "seed: -1"),
        ("a" * 4097, {}, "at most 4096 characters"),
        ("\u4f60", {}, "without any token"),
    ):
        with pytest.raises(InvalidRequest, match=says):
            told(engine, spec, text, **asked)
    bert = models.spec("demo/bert", models.source("demo/bert", models.bert_classifier(tmp_path / "bert")))
    with pytest.raises(InvalidRequest, match="BertForSequenceClassification"):
        told(engine, bert)


def test_speech_beyond_the_longest_is_refused_before_it_is_made(engine: EngineOnALoop, tmp_path: Path) -> None:
    folder = models.vits(tmp_path / "slow")
    config: Any = transformers.VitsConfig.from_pretrained(folder)
    config.speaking_rate = 1e-6
    config.save_pretrained(folder)
    spec = models.spec("demo/slow", models.source("demo/slow", folder))
    with pytest.raises(InvalidRequest, match=r"s to speak; at most 600 s"):
        told(engine, spec)


def test_a_sound_is_read_back_from_its_file() -> None:
    sound = np.array([0, 0.5, -0.5, 1, -1, 3, -3], np.float32)
    np.testing.assert_allclose(sounds.samples(sounds.wav(sound, 8000), 8000), np.clip(sound, -1, 1), atol=1e-4)
