"""What users of transformers' Trainer do, each function run in a process of its own: see `scenarios.py`."""

import sys
import tempfile
from pathlib import Path
from typing import Any


def the_trainer_pushes(repo_id: str) -> None:
    import torch
    from huggingface_hub import HfApi, ModelCard
    from transformers import AutoModelForCausalLM

    api = HfApi()
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(Path(folder), hub_model_id=repo_id, hub_strategy="every_save", hub_private_repo=True)
        trainer.train()
        trainer.push_to_hub(commit_message="done", tags=["tiny"], license="apache-2.0")
    titles = [commit.title for commit in api.list_repo_commits(repo_id)]
    assert titles[0] == "done"
    assert "Training in progress, step 2" in titles
    paths = set(api.list_repo_files(repo_id))
    assert {"training_args.bin", "model.safetensors", "tokenizer.json", "README.md"} <= paths
    information = api.model_info(repo_id)
    assert information.private
    assert {"generated_from_trainer", "tiny", "license:apache-2.0"} <= set(information.tags or [])
    card: Any = ModelCard.load(repo_id)
    assert card.data.library_name == "transformers"
    loaded: Any = AutoModelForCausalLM.from_pretrained(repo_id)
    torch.testing.assert_close(loaded.lm_head.weight, trainer.model.lm_head.weight)


def training_resumes_from_the_hub(repo_id: str) -> None:
    from huggingface_hub import snapshot_download

    with tempfile.TemporaryDirectory() as folder:
        hub = {"hub_model_id": repo_id, "hub_strategy": "checkpoint"}
        _trainer(Path(folder, "first"), **hub).train()
        snapshot = snapshot_download(repo_id, allow_patterns="last-checkpoint/*")
        again = _trainer(Path(folder, "second"), max_steps=6, **hub)
        again.train(resume_from_checkpoint=f"{snapshot}/last-checkpoint")
        steps = [entry["step"] for entry in again.state.log_history if "loss" in entry]
    assert steps == [1, 2, 3, 4, 5, 6]


def _trainer(folder: Path, **arguments: Any) -> Any:
    """A trainer of a tiny model for four steps, saving and pushing after each second one."""
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    from tests.hub.serving import models

    tokenizer: Any = models.tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    made: Any = Trainer
    given: dict[str, Any] = {"max_steps": 4, "save_steps": 2, "logging_steps": 1, "hub_always_push": True, **arguments}
    return made(
        model=AutoModelForCausalLM.from_pretrained(models.llama(folder / "base")),
        args=TrainingArguments(
            output_dir=str(folder / "out"),
            per_device_train_batch_size=2,
            push_to_hub=True,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            **given,
        ),
        train_dataset=[{"input_ids": torch.arange(8) + k, "labels": torch.arange(8) + k} for k in range(8)],
        processing_class=tokenizer,
    )


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
