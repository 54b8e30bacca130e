"""The command in this process, away from the environment and the tokens of whoever runs the tests."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub.constants  # noqa: F401  it keeps the endpoint of its first import: not that of a test
import pytest

from adapterhub.cli.main import main
from tests.hub.services import samples


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("ADAPTERHUB_ENDPOINT", "ADAPTERHUB_TOKEN", "ADAPTERHUB_DEBUG", "HF_ENDPOINT"):
        monkeypatch.setenv(name, "")  # so that what a command sets is gone after the test, too
        monkeypatch.delenv(name)
    # where huggingface_hub keeps its tokens is decided at its import, so only a variable can hide them
    monkeypatch.setenv("HF_TOKEN", "ah_a-token-for-tests-only")
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `adapterhub ARGUMENTS` in this process."""

    def run(*arguments: str) -> Ended:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        captured = capsys.readouterr()
        code = ended.value.code
        return Ended(code if isinstance(code, int) else 0, captured.out, captured.err)

    return run


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A folder with the folders base, base-v2, code and licences: two models and two LoRAs on the first."""
    for name, files in {
        "base": samples.model(),
        "base-v2": samples.model(seed=1),
        "code": samples.lora("demo/base"),
        "licences": samples.lora("demo/base", r=3),
    }.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file.path).write_bytes(file.content)
    return tmp_path
