"""What users of TRL do, each function run in a process of its own: see `scenarios.py`."""

import sys
import tempfile
from pathlib import Path
from typing import Any


def fine_tuning_pushes(repo_id: str) -> None:
    import torch
    from datasets import Dataset
    from huggingface_hub import HfApi
    from peft import AutoPeftModelForCausalLM, LoraConfig
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from tests.hub.serving import models

    api = HfApi()
    base_id, lora_id = f"{repo_id}-base", f"{repo_id}-lora"
    with tempfile.TemporaryDirectory() as folder:
        models.llama(Path(folder, "base"))
        api.create_repo(base_id)
        api.upload_folder(repo_id=base_id, folder_path=Path(folder, "base"))
        tokenizer: Any = AutoTokenizer.from_pretrained(base_id)
        tokenizer.pad_token = tokenizer.eos_token
        config = SFTConfig(
            output_dir=f"{folder}/out",
            max_steps=4,
            save_steps=2,
            per_device_train_batch_size=2,
            max_length=32,
            push_to_hub=True,
            hub_model_id=lora_id,
            hub_strategy="every_save",
            report_to=[],
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            dataset_num_proc=None,
        )
        trainer: Any = SFTTrainer(
            model=base_id,
            args=config,
            train_dataset=Dataset.from_dict({"text": [f"the patch number {k}" for k in range(8)]}),
            processing_class=tokenizer,
            peft_config=LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
        )
        trainer.train()
        trainer.push_to_hub(commit_message="done")
    titles = [commit.title for commit in api.list_repo_commits(lora_id)]
    assert titles[0] == "done"
    assert "Training in progress, step 2" in titles
    information = api.model_info(lora_id)
    assert {"sft", "trl", "peft", f"base_model:adapter:{base_id}"} <= set(information.tags or [])
    assert "training_args.bin" in api.list_repo_files(lora_id)
    tokens = torch.arange(8)[None]
    loaded: Any = AutoPeftModelForCausalLM.from_pretrained(lora_id)
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(tokens).logits, trainer.model.eval()(tokens).logits)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
