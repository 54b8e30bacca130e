"""Texts spoken through the running server, by huggingface_hub's unmodified InferenceClient."""

from typing import Any

import pytest
import transformers
from huggingface_hub import HfApi, InferenceClient
from huggingface_hub.errors import BadRequestError

from tests.clients.server import Server
from tests.hub.serving import models
from tests.hub.serving.test_voices import TEXT, assert_sounds_like, spoken, voice_lora

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::FutureWarning")]


def test_a_text_is_spoken_in_the_voice_of_the_variant(
    serving: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root, api = tmp_path_factory.mktemp("voices"), HfApi(endpoint=serving.url, token=serving.token)
    folder = models.vits(root / "vits")
    merged = voice_lora(folder, root / "voice")
    config = root / "voice" / "adapter_config.json"
    config.write_text(config.read_text().replace("tiny/base", "admin/vits"))
    for one in (folder, root / "voice"):
        api.create_repo(f"admin/{one.name}")
        api.upload_folder(repo_id=f"admin/{one.name}", folder_path=one)

    def ask(model: str, text: str = TEXT, **parameters: Any) -> bytes:
        client = InferenceClient(model=f"{serving.url}/models/{model}", token=serving.token)
        return client.text_to_speech(text, extra_body=parameters or None)

    library: Any = transformers.VitsModel.from_pretrained(folder)
    library.eval()
    assert_sounds_like(ask("admin/vits"), spoken(library, folder))
    assert_sounds_like(ask("admin/vits/pipeline/text-to-speech", seed=3), spoken(library, folder, seed=3))
    assert_sounds_like(ask("admin/vits:admin/voice", seed=3), spoken(merged, folder, seed=3))
    assert ask("admin/voice", seed=3) == ask("admin/vits:admin/voice", seed=3) != ask("admin/vits", seed=3)
    with serving.http() as http:
        reply = http.post("/models/admin/vits", json={"inputs": TEXT, "seed": 3})
        assert (reply.headers["content-type"], reply.content) == ("audio/wav", ask("admin/vits", seed=3))
    with pytest.raises(BadRequestError, match="seed: -1"):
        ask("admin/vits", seed=-1)
