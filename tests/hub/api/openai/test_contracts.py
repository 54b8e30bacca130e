"""Contracts and predecessors through the running server, as openai's client sees them."""

import numpy as np
import openai
import pytest
from huggingface_hub import HfApi, InferenceClient

from adapterhub.merging import native
from tests.clients.server import Server

ONE = np.full(32, 1e-3, np.float32)


@pytest.fixture(scope="module")
def patches(serving: Server, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Patches whose contracts differ, one on top of another, and one that names classes."""
    root = tmp_path_factory.mktemp("contracts")
    norm, layer = "model.norm.weight", "bert.encoder.layer.0.output.LayerNorm.weight"
    base = {"repo_id": "admin/base"}
    native.write_patch(root / "loud", sites={norm: native.sparse(ONE)}, base=base, contract={"chat_template": "LOUD"})
    native.write_patch(root / "calm", sites={norm: native.sparse(-ONE)}, base=base, contract={"chat_template": "so"})
    on_top = {**base, "recipe": "admin/base + admin/loud"}
    native.write_patch(root / "dpo", sites={norm: native.sparse(2 * ONE)}, base=on_top)
    names = {"label_map": {"0": "red", "1": "green", "2": "blue"}}
    native.write_patch(root / "hues", sites={layer: native.sparse(ONE)}, base={"repo_id": "admin/bert"}, contract=names)
    api = HfApi(endpoint=serving.url, token=serving.token)
    for folder in sorted(root.iterdir()):
        api.create_repo(f"admin/{folder.name}")
        api.upload_folder(repo_id=f"admin/{folder.name}", folder_path=folder)


def prompt_tokens(client: openai.OpenAI, model: str) -> int:
    found = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "hello"}], max_tokens=1, temperature=0
    )
    assert found.usage
    return found.usage.prompt_tokens


@pytest.mark.usefixtures("patches")
def test_a_chat_uses_the_template_of_its_patch(client: openai.OpenAI) -> None:
    assert [prompt_tokens(client, model) for model in ("admin/base", "admin/loud", "admin/calm")] == [5, 4, 2]
    with pytest.raises(openai.BadRequestError, match="each have a chat_template of their own") as caught:
        prompt_tokens(client, "admin/base + admin/loud + admin/calm")
    assert caught.value.code == "incompatible_patch"


@pytest.mark.usefixtures("patches")
def test_a_patch_on_top_of_another_is_served_with_it_alone(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"admin/base \+ admin/loud \+ admin/dpo") as caught:
        prompt_tokens(client, "admin/dpo")
    assert caught.value.code == "incompatible_patch"
    assert prompt_tokens(client, "admin/base + admin/loud + admin/dpo") == 4


@pytest.mark.usefixtures("patches")
def test_classes_are_called_as_the_patch_says(serving: Server) -> None:
    found = InferenceClient(model=f"{serving.url}/models/admin/hues", token=serving.token).text_classification("fine")
    assert {one.label for one in found} == {"red", "green", "blue"}
