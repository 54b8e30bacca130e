"""Real public adapter configurations, as found: each is recognised, or refused with a sentence that says why."""

import json
import shutil
from pathlib import Path

import pytest

from adapterhub.merging import patches
from adapterhub.merging.checkpoint import LocalFolder
from adapterhub.merging.errors import InvalidPatch, NotFoldable

CORPUS = Path(__file__).parents[2] / "corpus"
ROWS = [json.loads(line) for line in (CORPUS / "index.jsonl").read_text().splitlines()]
CONFIGS = {row["file"]: row for row in ROWS if row["file"].startswith("adapter_configs/")}

REFUSED = {
    "0004": "says peft_type 'BDLORA', which is no type that is known here",  # peft released it as LORA with use_bdlora
    "0012": "says peft_type 'FINEGATES', which is no type that is known here",
    "0064": "a Git LFS pointer instead of the file",
    "0073": "no peft_type and no key of another library that is known here (its keys: adapter_mode, adapter_type",
    "0098": "no peft_type and no key of another library that is known here (its keys: kismet_monitoring",
}
"""Those of no kind, and why. All others are of the kind that their peft_type or library says."""


def expected(row: dict[str, str]) -> str:
    guess = row["kind_guess"]
    libraries = {"mlx-lm": "mlx", "adapterhub": "adapters", "adapterhub-fusion": "adapters"}
    return libraries.get(guess, guess.removeprefix("peft:").lower())


def only(file: str, tmp_path: Path) -> LocalFolder:
    shutil.copy(CORPUS / file, tmp_path / "adapter_config.json")
    return LocalFolder(tmp_path)


@pytest.mark.parametrize("file", CONFIGS)
def test_a_configuration_is_recognised_or_refused_with_its_reason(file: str, tmp_path: Path) -> None:
    folder = only(file, tmp_path)
    (facts,) = patches.inspect(folder)
    sentence = REFUSED.get(Path(file).stem)
    if sentence is not None:
        assert facts.kind == "unknown"
        assert sentence in facts.problems[0]
    else:
        assert facts.kind == expected(CONFIGS[file])
        assert facts.reason
        # No weights lie beside a configuration of the corpus; what else is wrong comes first.
        assert len(facts.problems) == 1
        assert ".safetensors" in facts.problems[0] or "adapter_config.json: " in facts.problems[0]
    with pytest.raises((InvalidPatch, NotFoldable)) as refused:
        patches.read(folder)
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize("file", [file for file in CONFIGS if Path(file).stem not in REFUSED])
def test_a_base_is_taken_over_only_where_it_is_a_repository(file: str, tmp_path: Path) -> None:
    (facts,) = patches.inspect(only(file, tmp_path))
    said = json.loads((CORPUS / file).read_text())
    name = said.get("base_model_name_or_path", said.get("model", said.get("model_name")))
    if facts.base.name is not None:
        assert facts.base.name == name
    if isinstance(name, str) and name.startswith(("/", "./", "C:")) and facts.kind == "mlx":
        assert facts.base.name is None
