"""What users of transformers do, each function run in a process of its own: see `scenarios.py`."""

import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any


def models_and_their_files(repo_id: str) -> None:
    import torch
    from huggingface_hub import HfApi
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    from tests.hub.serving import models

    with tempfile.TemporaryDirectory() as folder:
        models.llama(Path(folder))
        model: Any = AutoModelForCausalLM.from_pretrained(folder)
    model.generation_config.max_new_tokens = 7
    tokens = torch.arange(8)[None]
    expected = model(tokens).logits
    model.push_to_hub(repo_id, max_shard_size="20KB", commit_message="in shards", private=True)
    tokenizer: Any = models.tokenizer()
    tokenizer.chat_template = {"default": "{{ messages[0].content }}", "rag": "{{ documents }}"}
    tokenizer.push_to_hub(repo_id)

    api = HfApi()
    paths = api.list_repo_files(repo_id)
    shards = [path for path in paths if path.endswith(".safetensors")]
    assert len(shards) > 2
    assert "model.safetensors.index.json" in paths
    assert "additional_chat_templates/rag.jinja" in paths
    again: Any = AutoModelForCausalLM.from_pretrained(repo_id)
    torch.testing.assert_close(again(tokens).logits, expected)
    assert again.generation_config.max_new_tokens == 7
    assert GenerationConfig.from_pretrained(repo_id).max_new_tokens == 7
    read: Any = AutoTokenizer.from_pretrained(repo_id)
    assert read.encode("a patch") == tokenizer.encode("a patch")
    assert read.chat_template == tokenizer.chat_template

    count = sum(parameter.numel() for parameter in model.parameters())
    metadata = api.get_safetensors_metadata(repo_id)
    assert metadata.sharded
    assert set(metadata.files_metadata) == set(shards)
    assert metadata.parameter_count == {"F32": count}
    information = api.model_info(repo_id)
    assert information.safetensors is not None
    assert information.safetensors.total == count
    assert information.pipeline_tag == "text-generation"

    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    api.create_branch(repo_id, branch="feat/louder")
    model.push_to_hub(repo_id, revision="feat/louder", max_shard_size="20KB")
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, variant="louder", max_shard_size="20KB")
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="a variant")
    whole: Any = AutoModelForCausalLM.from_pretrained(repo_id)
    torch.testing.assert_close(whole(tokens).logits, expected)
    for selection in ({"revision": "feat/louder"}, {"variant": "louder"}):
        louder: Any = AutoModelForCausalLM.from_pretrained(repo_id, **selection)
        torch.testing.assert_close(louder(tokens).logits, expected * 2)

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        api.upload_folder(repo_id=repo_id, folder_path=folder, path_in_repo="deep/sub")
    below: Any = AutoModelForCausalLM.from_pretrained(repo_id, subfolder="deep/sub")
    torch.testing.assert_close(below(tokens).logits, expected * 2)
    assert AutoTokenizer.from_pretrained(repo_id, subfolder="deep/sub").chat_template == tokenizer.chat_template

    for alone in (False, True):
        cached: Any = AutoModelForCausalLM.from_pretrained(repo_id, local_files_only=alone)
        torch.testing.assert_close(cached(tokens).logits, expected)


def refusals_in_transformers_words(repo_id: str) -> None:
    from huggingface_hub import HfApi
    from transformers import AutoConfig, BertConfig

    api = HfApi()
    config: Any = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    config.push_to_hub(repo_id, private=True)

    def refused(name: str, **selection: Any) -> str:
        try:
            AutoConfig.from_pretrained(name, **selection)
        except OSError as error:
            return str(error)
        raise AssertionError(f"{name} was loaded with {selection}")

    for hidden in (refused(repo_id, token=False), refused(f"{repo_id}-none"), refused(f"{repo_id}-none", token=False)):
        assert "is not a valid model identifier" in hidden
    assert "not a valid git identifier" in refused(repo_id, revision="no-such-branch")
    assert "Invalid credentials" in refused(repo_id, token="ah_not-a-token-of-this-server")
    api.update_repo_settings(repo_id, private=False, gated="manual")
    assert "gated repo" in refused(repo_id, token=False)
    assert AutoConfig.from_pretrained(repo_id).hidden_size == 8


def pickled_weights_stay_here(repo_id: str) -> None:
    import os
    import threading

    import torch
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from transformers import AutoModelForCausalLM

    from tests.hub.serving import models

    api = HfApi()
    with tempfile.TemporaryDirectory() as folder:
        model: Any = AutoModelForCausalLM.from_pretrained(models.llama(Path(folder)))
        torch.save(model.state_dict(), Path(folder, "pytorch_model.bin"))
        Path(folder, "model.safetensors").unlink()
        api.create_repo(repo_id, private=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder)
    loaded: Any = AutoModelForCausalLM.from_pretrained(repo_id, token=os.environ["HF_TOKEN"])
    torch.testing.assert_close(loaded.lm_head.weight, model.lm_head.weight)
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join(30)
    try:
        AutoModelForCausalLM.from_pretrained(repo_id, use_safetensors=True, revision="main")
    except HfHubHTTPError as error:
        refused_with = str(error)
    assert "another host convert them" in refused_with


def pipelines(repo_id: str) -> None:
    import numpy
    from huggingface_hub import HfApi
    from PIL import Image
    from transformers import (
        AutoImageProcessor,
        AutoModelForImageClassification,
        ViTConfig,
        ViTForImageClassification,
        ViTImageProcessor,
        pipeline,
    )

    from tests.hub.serving import models

    def vit(folder: Path) -> Path:
        shape: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 48, "num_labels": 7}
        config = ViTConfig(**shape, num_attention_heads=4, image_size=8, patch_size=4)
        ViTForImageClassification(config).save_pretrained(folder)
        ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
        return folder

    made = {"llama": models.llama, "bert": models.bert_classifier, "vit": vit}
    names = {kind: f"{repo_id}-{kind}" for kind in made}
    with tempfile.TemporaryDirectory() as folder:
        for kind, make in made.items():
            path = make(Path(folder, kind))
            HfApi().create_repo(names[kind])
            HfApi().upload_folder(repo_id=names[kind], folder_path=path)
        here: Any = pipeline("text-generation", model=str(Path(folder, "llama")))
        expected = here("a patch", max_new_tokens=6, do_sample=False)
    write: Any = pipeline("text-generation", model=names["llama"])
    assert write("a patch", max_new_tokens=6, do_sample=False) == expected
    feel: Any = pipeline("feature-extraction", model=names["bert"])
    assert numpy.shape(feel("a patch")) == (1, 7, 32)
    judge: Any = pipeline("text-classification", model=names["bert"])
    assert judge("a patch")[0]["label"] in ("no", "maybe", "yes")
    of_any_task: Any = pipeline
    see = of_any_task(model=names["vit"])
    assert see.task == "image-classification"
    assert len(see(Image.new("L", (8, 8), 100))) == 5

    processors: Any = AutoImageProcessor
    processor = processors.from_pretrained(names["vit"])
    processor.push_to_hub(f"{repo_id}-processor")
    model: Any = AutoModelForImageClassification.from_pretrained(names["vit"])
    model.push_to_hub(f"{repo_id}-processor")
    second: Any = pipeline("image-classification", model=f"{repo_id}-processor")
    assert second(Image.new("L", (8, 8), 100)) == see(Image.new("L", (8, 8), 100))


def models_with_code_of_their_own(repo_id: str) -> None:
    import importlib

    import torch
    from transformers import AutoConfig, AutoModel

    code = """
        import torch
        from transformers import PreTrainedConfig, PreTrainedModel

        class HouseConfig(PreTrainedConfig):
            model_type = "house"
            rooms = 3

        class HouseModel(PreTrainedModel):
            config_class = HouseConfig

            def __init__(self, config):
                super().__init__(config)
                self.door = torch.nn.Linear(config.rooms, 2)
                self.post_init()

            def forward(self, x):
                return self.door(x)
    """
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "house.py").write_text(textwrap.dedent(code))
        sys.path.insert(0, folder)
        house: Any = importlib.import_module("house")
        house.HouseConfig.register_for_auto_class()
        house.HouseModel.register_for_auto_class("AutoModel")
        model = house.HouseModel(house.HouseConfig())
        model.push_to_hub(repo_id)
        sys.path.remove(folder)
        del sys.modules["house"]
    loaded: Any = AutoModel.from_pretrained(repo_id, trust_remote_code=True)
    assert type(loaded).__module__.startswith("transformers_modules")
    torch.testing.assert_close(loaded.door.weight, model.door.weight)
    assert AutoConfig.from_pretrained(repo_id, trust_remote_code=True, code_revision="main").rooms == 3


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
