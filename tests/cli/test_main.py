"""Exit codes, the one line of an error, and a start without weight."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from adapterhub.cli import main as main_module
from adapterhub.cli.client import Client
from adapterhub.cli.errors import EXIT_CODES, of_code, of_status
from adapterhub.cli.reference import page
from tests.cli.conftest import Command
from tests.cli.fake import Answer, serving

ROOT = Path(__file__).parent.parent.parent


def test_help_names_every_command_and_the_exit_codes(command: Command) -> None:
    ended = command("--help")
    assert ended.code == 0
    for name in [
        "serve",
        "login",
        "whoami",
        "patch",
        "merge",
        "port",
        "recipe",
        "job",
        "admin",
        "chat",
        "demo",
        "doctor",
    ]:
        assert f"\n  {name} " in ended.out
    assert all(str(code) in ended.out for code in EXIT_CODES)


def test_the_reference_is_what_the_commands_say() -> None:
    assert (ROOT / "docs" / "cli.md").read_text() == page() + "\n", "python -m adapterhub.cli.reference > docs/cli.md"


def test_no_command_loads_what_only_its_work_needs() -> None:
    program = "import sys; from adapterhub.cli.main import build; build(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "peft", "numpy", "fastapi", "sqlmodel", "pydantic", "httpx", "huggingface_hub"}
    assert not heavy & set(done.stdout.split())


def test_the_module_runs_like_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "adapterhub.cli", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()[0]) == (0, "adapterhub")


@pytest.mark.parametrize(
    "arguments", [("patch",), ("nonsense",), ("merge", "run"), ("patch", "push", "/nowhere", "a/b")]
)
def test_wrong_usage_exits_with_2(command: Command, arguments: tuple[str, ...]) -> None:
    assert command(*arguments).code == 2


def test_a_server_that_is_not_there_is_one_line_that_says_what_to_do(command: Command) -> None:
    ended = command("--endpoint", "http://127.0.0.1:1", "patch", "list")
    assert ended.code == 1
    assert ended.err == (
        "Error: no adapterhub answers at http://127.0.0.1:1; start one with `adapterhub serve`, or set HF_ENDPOINT\n"
    )


def test_debug_shows_the_traceback_too(command: Command) -> None:
    ended = command("--debug", "--endpoint", "http://127.0.0.1:1", "patch", "list")
    assert "Traceback" in ended.err
    assert ended.err.splitlines()[-1].startswith("Error: no adapterhub answers")


def test_the_server_is_found_by_option_then_by_variables(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:2")
    assert "127.0.0.1:2;" in command("patch", "list").err
    monkeypatch.setenv("ADAPTERHUB_ENDPOINT", "http://127.0.0.1:3")
    assert "127.0.0.1:3;" in command("patch", "list").err
    assert "127.0.0.1:4;" in command("--endpoint", "http://127.0.0.1:4/", "patch", "list").err
    assert command("--endpoint", "nonsense", "patch", "list").code == 2


def test_a_fault_is_one_line_with_exit_code_1(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(main_module, "build", broken)
    ended = command("patch", "list")
    assert ended.code == 1
    assert ended.err == "Error: RuntimeError: two lines; this is a fault of adapterhub, --debug shows more\n"


def test_ctrl_c_exits_with_130(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main_module, "build", interrupted)
    assert command("patch", "list").code == 130


def test_ctrl_c_leaves_a_job_running_and_says_how_to_watch_it(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(client: Client, job_id: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "watch", interrupted)
    job = {"id": "7", "state": "queued", "progress": {"done": 0, "total": 0, "message": ""}}
    with serving(Answer(202, json.dumps(job))) as fake:
        ended = command("--endpoint", fake.url, "merge", "run", "a/b + c/d")
    assert ended.code == 130
    assert ended.err.splitlines()[-1] == "job 7 goes on; watch it with `adapterhub job watch 7`"


@pytest.mark.parametrize(
    ("status", "code"), [(404, 3), (400, 4), (401, 4), (403, 4), (409, 4), (422, 4), (500, 1), (503, 1)]
)
def test_what_the_server_answers_decides_the_exit_code(command: Command, status: int, code: int) -> None:
    problem = '{"status": 0, "detail": "demo/x: the server\'s own words\\u001b[31m", "code": "x"}'
    with serving(Answer(status, problem, "application/problem+json")) as fake:
        ended = command("--endpoint", fake.url, "patch", "show", "demo/x")
    assert ended.code == code == of_status(status, "").exit_code
    assert ended.err.startswith("Error: demo/x: the server's own words[31m")
    assert len(ended.err.splitlines()) == 1


@pytest.mark.parametrize(("code", "exit_code"), [("repo_not_found", 3), ("internal_error", 1), ("unfit_patch", 4)])
def test_why_a_job_failed_decides_the_exit_code(code: str, exit_code: int) -> None:
    assert of_code(code, "").exit_code == exit_code


def test_settings_that_are_wrong_are_usage_errors(command: Command, tmp_path: Path) -> None:
    ended = command("serve", "--data", str(tmp_path), "--port", "70000")
    assert ended.code == 2
    assert "port" in ended.err
    ended = command("serve", "--data", str(tmp_path), "--host", "0.0.0.0")
    assert ended.code == 4
    assert "ADAPTERHUB_SECRET" in ended.err


def test_the_help_of_serve_lists_every_setting(command: Command) -> None:
    from adapterhub.hub.settings import Settings

    told = command("serve", "--help").out
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')} " in told or f"ADAPTERHUB_{name.upper()} " in told
