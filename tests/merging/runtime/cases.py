"""For every run-time kind, patches on tiny models and an oracle that says what the patched model must answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from tests.merging.exactness.architectures import ARCHITECTURES
from tests.merging.exactness.compare import DTYPES, trained

TASKS = {"SEQ_2_SEQ_LM": ("t5", "mt5", "whisper"), "SEQ_CLS": ("bert", "electra")}


@dataclass
class Made:
    """A patch in `folder`, a fresh `model` to put it on, and the oracle.

    oracle: `(**inputs)` gives the logits that the patched model must give. calls: what a call takes beside the inputs.
    peft: peft's own model, where that is the oracle.
    """

    model: Any
    folder: Path
    oracle: Callable[..., torch.Tensor]
    oracle_name: str
    calls: Mapping[str, Any] = field(default_factory=dict)
    peft: Any = None


@dataclass(frozen=True)
class Case:
    """One kind on one architecture. generates: whether its oracle is asked token by token too."""

    kind: str
    architecture: str
    make: Callable[[Path, str], Made]
    generates: bool = True

    def __str__(self) -> str:
        return f"{self.kind}-{self.architecture}"


def fresh(architecture: str, dtype: str) -> Any:
    """A model of random values that never ends a sentence by itself."""
    model: Any = ARCHITECTURES[architecture].make(dtype=DTYPES[dtype])
    model.name_or_path = "tiny/base"
    if model.can_generate():
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0
    return model


def task_type(architecture: str) -> str:
    return next((task for task, names in TASKS.items() if architecture in names), "CAUSAL_LM")


def peft_case(
    kind: str, architecture: str, config: Callable[..., Any], *, calls: Mapping[str, Any] | None = None, **options: Any
) -> Case:
    """A kind of peft's, whose oracle is peft on another copy of the model."""

    def make(tmp_path: Path, dtype: str) -> Made:
        folder = tmp_path / "patch"
        made = config(task_type=task_type(architecture), **options)
        trained(fresh(architecture, dtype).float(), made, folder, std=0.3)
        oracle: Any = PeftModel.from_pretrained(fresh(architecture, dtype), str(folder)).eval()

        def answer(**inputs: Any) -> torch.Tensor:
            if kind == "multitask_prompt_tuning" and "decoder_input_ids" in inputs:
                # peft drops decoder_input_ids here and takes embedded ones.
                inputs["decoder_inputs_embeds"] = oracle.word_embeddings(inputs.pop("decoder_input_ids"))
            found: torch.Tensor = oracle(**inputs).logits
            return found

        return Made(fresh(architecture, dtype), folder, answer, "peft PeftModel", calls or {}, oracle)

    return Case(kind, architecture, make, generates=task_type(architecture) != "SEQ_CLS")


def _peft_cases() -> Sequence[Case]:
    import peft

    found: list[Case] = []
    causal = ("gpt2", "llama", "mistral", "gemma", "opt", "phi3", "falcon", "mixtral")
    tokens: dict[str, Any] = {"num_virtual_tokens": 3}
    for name in (*causal, "bert", "electra", "t5", "mt5"):
        found.append(peft_case("prompt_tuning", name, peft.PromptTuningConfig, **tokens))
        encoder: dict[str, Any] = {"encoder_hidden_size": 8}
        found.append(peft_case("p_tuning", name, peft.PromptEncoderConfig, **tokens, **encoder))
        tasks: dict[str, Any] = {"num_tasks": 2, "num_ranks": 2, "num_transformer_submodules": 1 if name != "t5" else 2}
        if name not in ("mt5",):
            found.append(
                peft_case(
                    "multitask_prompt_tuning",
                    name,
                    peft.MultitaskPromptTuningConfig,
                    calls={"task_ids": torch.tensor([1])},
                    **tokens,
                    **tasks,
                )
            )
    for name in causal:
        ids: dict[str, Any] = {"cpt_token_ids": [1, 2, 3], "cpt_mask": [1, 1, 1], "cpt_tokens_type_mask": [1, 2, 4]}
        found.append(peft_case("cpt", name, peft.CPTConfig, **ids))
    for name in (*causal, "t5", "mt5"):
        found.append(peft_case("prefix_tuning", name, peft.PrefixTuningConfig, **tokens))
        found.append(peft_case("cartridge", name, peft.CartridgeConfig, **tokens))
    return found


CASES: Sequence[Case] = _peft_cases()
