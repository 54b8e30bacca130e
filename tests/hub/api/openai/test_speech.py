"""Models of sounds and pairs of encoder and decoder through the running server, with adapters pushed on them."""

from typing import Any

import openai
import pytest
from huggingface_hub import HfApi, InferenceClient

from tests.clients.server import Server
from tests.hub.serving import models
from tests.hub.serving.test_architectures import PROCESSORS, base_of, seen, spoken, tuned_on, wav
from tests.merging.exactness.architectures import ARCHITECTURES

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(scope="module")
def tuned(serving: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Bases pushed as admin/tiny-<name>, LoRAs as admin/<name>-lora, and peft's merges of the two."""
    root, api = tmp_path_factory.mktemp("speech"), HfApi(endpoint=serving.url, token=serving.token)
    found = {}
    for name in ("t5", "wav2vec2", "ast"):
        base, lora = root / f"tiny-{name}", root / f"{name}-lora"
        found[name] = tuned_on(ARCHITECTURES[name], base_of(ARCHITECTURES[name], base), lora).eval()
        config = lora / "adapter_config.json"
        config.write_text(config.read_text().replace("tiny/base", f"admin/{base.name}"))
        for folder in (base, lora):
            api.create_repo(f"admin/{folder.name}")
            api.upload_folder(repo_id=f"admin/{folder.name}", folder_path=folder)
    return found


def inference(server: Server, model: str) -> InferenceClient:
    return InferenceClient(model=f"{server.url}/models/{model}", token=server.token)


def test_speech_is_recognised(serving: Server, tuned: dict[str, Any]) -> None:
    found = inference(serving, "admin/wav2vec2-lora").automatic_speech_recognition(wav())
    assert found.text == spoken(tuned["wav2vec2"], PROCESSORS["wav2vec2"]())


def test_sounds_are_classified(serving: Server, tuned: dict[str, Any]) -> None:
    found = inference(serving, "admin/ast-lora").audio_classification(wav())
    expected = tuned["ast"](**seen("ast")).logits[0].softmax(-1)
    assert found[0].label == tuned["ast"].config.id2label[int(expected.argmax())]
    assert found[0].score == pytest.approx(float(expected.max()), rel=1e-4)


def test_an_encoder_with_a_decoder_completes(client: openai.OpenAI, tuned: dict[str, Any]) -> None:
    ids = models.tokenizer()("hello", return_tensors="pt")["input_ids"]
    out = tuned["t5"].generate(input_ids=ids, max_new_tokens=8, do_sample=False, pad_token_id=models.END)
    found = client.completions.create(model="admin/t5-lora", prompt="hello", max_tokens=8, temperature=0)
    assert found.choices[0].text == models.tokenizer().decode(out[0, 1:], skip_special_tokens=True)
    with pytest.raises(openai.BadRequestError, match="does not generate text"):
        client.completions.create(model="admin/ast-lora", prompt="hello")
