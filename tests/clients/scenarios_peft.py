"""What users of PEFT do, each function run in a process of its own: see `scenarios.py`."""

import sys
import tempfile
from pathlib import Path
from typing import Any


def adapters_on_a_base(repo_id: str) -> None:
    import torch
    from huggingface_hub import HfApi
    from peft import AutoPeftModelForCausalLM, LoraConfig, PeftConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM, pipeline

    from tests.hub.serving import models

    api = HfApi()
    base_id, lora_id = f"{repo_id}-base", f"{repo_id}-lora"
    with tempfile.TemporaryDirectory() as folder:
        api.create_repo(base_id)
        api.upload_folder(repo_id=base_id, folder_path=models.llama(Path(folder)))
    tokens = torch.arange(8)[None]

    def base() -> Any:
        return AutoModelForCausalLM.from_pretrained(base_id)

    def answers(model: Any) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = model.eval()(tokens).logits
        return found

    expected = {}
    for seed, name in enumerate(("one", "two", "three")):
        torch.manual_seed(seed)
        config = LoraConfig(
            r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM", lora_alpha=4
        )
        tuned: Any = get_peft_model(base(), config)
        expected[name] = answers(tuned)
        if name == "one":
            tuned.push_to_hub(lora_id, private=True)
        else:
            with tempfile.TemporaryDirectory() as folder:
                tuned.save_pretrained(folder)
                path = {"two": "deep/two", "three": "three"}[name]
                api.upload_folder(repo_id=lora_id, folder_path=folder, path_in_repo=path)
    assert not any(torch.allclose(expected["one"], expected[name]) for name in ("two", "three"))

    loaded: Any = PeftModel.from_pretrained(base(), lora_id)
    torch.testing.assert_close(answers(loaded), expected["one"])
    loaded.load_adapter(lora_id, adapter_name="two", subfolder="deep/two")
    loaded.load_adapter(lora_id, adapter_name="three", subfolder="three", revision="main")
    for name in ("two", "three", "default"):
        loaded.set_adapter(name)
        torch.testing.assert_close(answers(loaded), expected["one" if name == "default" else name])
    with loaded.disable_adapter():
        torch.testing.assert_close(answers(loaded), answers(base()))

    for whole in (AutoPeftModelForCausalLM.from_pretrained(lora_id), AutoModelForCausalLM.from_pretrained(lora_id)):
        torch.testing.assert_close(answers(whole), expected["one"])
    by_name = base()
    by_name.load_adapter(lora_id)
    torch.testing.assert_close(answers(by_name), expected["one"])
    write: Any = pipeline("text-generation", model=lora_id, tokenizer=base_id)
    assert write("a", max_new_tokens=2)[0]["generated_text"].startswith("a")

    assert PeftConfig.from_pretrained(lora_id).r == 2
    tags = api.model_info(lora_id).tags or []
    assert {"peft", f"base_model:adapter:{base_id}"} <= set(tags)
    assert lora_id in [model.id for model in api.list_models(filter=["peft", f"base_model:{base_id}"])]
    loaded.push_to_hub(f"{repo_id}-many")
    again: Any = PeftModel.from_pretrained(base(), f"{repo_id}-many", subfolder="two")
    torch.testing.assert_close(answers(again), expected["two"])


def every_shape_of_adapter(repo_id: str) -> None:
    import peft
    import torch
    from huggingface_hub import HfApi
    from transformers import AutoModel, AutoModelForCausalLM

    from tests.hub.serving import models

    api = HfApi()
    base_id = f"{repo_id}-base"
    with tempfile.TemporaryDirectory() as folder:
        api.create_repo(base_id)
        api.upload_folder(repo_id=base_id, folder_path=models.llama(Path(folder)))
    tokens = torch.arange(8)[None]
    on: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"]}
    causal: dict[str, Any] = {"task_type": "CAUSAL_LM"}
    configs: dict[str, tuple[Any, Any]] = {
        "dora": (AutoModelForCausalLM, peft.LoraConfig(r=2, use_dora=True, **on)),
        "whole-head": (AutoModelForCausalLM, peft.LoraConfig(r=2, modules_to_save=["lm_head"], **on)),
        "rows": (AutoModelForCausalLM, peft.LoraConfig(r=2, trainable_token_indices=[1, 2], **on)),
        "ranks": (AutoModelForCausalLM, peft.LoraConfig(r=2, rank_pattern={"q_proj": 4}, **on)),
        "embedding": (AutoModelForCausalLM, peft.LoraConfig(r=2, target_modules=["embed_tokens", "lm_head"])),
        "backbone": (AutoModel, peft.LoraConfig(r=2, task_type="FEATURE_EXTRACTION", **on)),
        "ia3": (AutoModelForCausalLM, peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[])),
        "prompt": (AutoModelForCausalLM, peft.PromptTuningConfig(num_virtual_tokens=4, **causal)),
        "prefix": (AutoModelForCausalLM, peft.PrefixTuningConfig(num_virtual_tokens=4, **causal)),
        "loha": (AutoModelForCausalLM, peft.LoHaConfig(r=2, **on)),
        "vera": (AutoModelForCausalLM, peft.VeraConfig(r=2, **on)),
        "norms": (AutoModelForCausalLM, peft.LNTuningConfig(target_modules=["input_layernorm"])),
    }

    def answers(model: Any) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = model.eval()(tokens)[0]
        return found

    for name, (auto, config) in configs.items():
        tuned: Any = peft.get_peft_model(auto.from_pretrained(base_id), config)
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
        tuned.push_to_hub(f"{repo_id}-{name}")
        loaded: Any = peft.PeftModel.from_pretrained(auto.from_pretrained(base_id), f"{repo_id}-{name}")
        torch.testing.assert_close(answers(loaded), answers(tuned), msg=name)
    found = api.list_models(filter=[f"base_model:adapter:{base_id}", "peft"])
    assert {model.id for model in found} == {f"{repo_id}-{name}" for name in configs}


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
