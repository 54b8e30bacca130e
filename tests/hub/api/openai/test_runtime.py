"""Patches that work at run time, through the running server: pushed by the real client, asked for by openai's."""

from typing import Any

import httpx
import openai
import peft
import pytest
import transformers
from huggingface_hub import HfApi

from tests.clients.server import Server
from tests.hub.serving import models
from tests.hub.serving.test_engine import expected_text
from tests.hub.serving.test_runtime import LINEAR, VIRTUAL, continued
from tests.merging.exactness.compare import trained

pytestmark = pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")

CONFIGS: dict[str, Any] = {
    "prompt": peft.PromptTuningConfig(**VIRTUAL),
    "prefix": peft.PrefixTuningConfig(**VIRTUAL),
    "lily": peft.LilyConfig(task_type="CAUSAL_LM", r=2, num_B=3, stride_A=1, target_modules=LINEAR["llama"]),
}


@pytest.fixture(scope="module")
def oracles(serving: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Patches pushed as admin/<name>, and peft's model of each."""
    root = tmp_path_factory.mktemp("runtime")
    models.llama(root / "base")
    api = HfApi(endpoint=serving.url, token=serving.token)
    auto: Any = transformers.AutoModelForCausalLM
    found: dict[str, Any] = {}
    for name, config in CONFIGS.items():
        trained(auto.from_pretrained(root / "base"), config, root / name, std=1.0)
        found[name] = peft.PeftModel.from_pretrained(auto.from_pretrained(root / "base"), str(root / name)).eval()
        file = root / name / "adapter_config.json"
        file.write_text(file.read_text().replace("tiny/base", "admin/base"))
        api.create_repo(f"admin/{name}")
        api.upload_folder(repo_id=f"admin/{name}", folder_path=root / name)
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_a_run_time_patch_completes_and_chats_as_peft_generates(
    client: openai.OpenAI, oracles: dict[str, Any], name: str
) -> None:
    oracle = oracles[name]
    expected = expected_text(oracle) if name == "lily" else continued(oracle)
    asked: dict[str, Any] = {"max_tokens": 12, "temperature": 0}
    for model in (f"admin/{name}", f"admin/base:admin/{name}", f"admin/base + 1*admin/{name}"):
        found = client.completions.create(model=model, prompt="hello", **asked)
        assert found.choices[0].text == expected
    chat = client.chat.completions.create(
        model=f"admin/{name}", messages=[{"role": "user", "content": "hello"}], stream=True, **asked
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chat) == expected


def test_what_does_not_stack_is_a_400_that_names_the_two(client: openai.OpenAI, oracles: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError, match="a cache begins with one prefix") as caught:
        client.completions.create(model="sequence(admin/base; admin/prefix, 1*admin/prefix)", prompt="a")
    assert caught.value.code == "incompatible_patch"
    with pytest.raises(openai.BadRequestError, match=r"weight 0\.5") as caught:
        client.completions.create(model="admin/base + 0.5*admin/prefix", prompt="a")
    assert caught.value.code == "incompatible_patch"


def test_a_merge_says_that_the_recipe_is_to_be_served_and_that_is_true(
    http: httpx.Client, client: openai.OpenAI, oracles: dict[str, Any]
) -> None:
    expression = "admin/base + admin/one + admin/prompt"
    reply = http.post("/api/merges", json={"expression": expression, "push": "admin/baked"})
    assert reply.status_code == 422
    assert "ask for the same recipe as `model`" in reply.json()["detail"]
    assert client.completions.create(model=expression, prompt="hello", max_tokens=2).choices[0].text is not None
