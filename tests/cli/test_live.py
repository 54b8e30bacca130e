"""The main job by command, against the real server in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.numpy import load_file

from adapterhub.cli.side_by_side import _Column, _grid
from tests.cli.conftest import Command, Ended
from tests.cli.fake import Answer, serving
from tests.clients.server import TOKEN, Server, running
from tests.hub.serving import models

pytestmark = pytest.mark.xdist_group("cli-live")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("cli") / "data", workers="1") as server:
        yield server


@pytest.fixture
def here(command: Command, server: Server, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command, with the server and the administrator's token in its environment."""
    monkeypatch.setenv("ADAPTERHUB_ENDPOINT", server.url)
    monkeypatch.setenv("ADAPTERHUB_TOKEN", TOKEN)
    return command


@pytest.fixture
def pushed(here: Command, folders: Path) -> Command:
    """The command, after bases and patches were pushed to a repository each under `admin`."""
    (folders / "code" / "adapter_config.json").write_text(_on("admin/base", folders / "code"))
    (folders / "licences" / "adapter_config.json").write_text(_on("admin/base", folders / "licences"))
    for name in ("base", "base-v2", "code", "licences"):
        ended = here("patch", "push", str(folders / name))
        assert ended.code == 0, ended.err
    return here


def test_a_repository_is_inspected_where_it_is(pushed: Command, folders: Path) -> None:
    [here] = map(json.loads, pushed("patch", "inspect", str(folders / "code"), "--json").out.splitlines())
    ended = pushed("patch", "inspect", "admin/code", "--values", "--json")
    assert ended.code == 0, ended.err
    [there] = map(json.loads, ended.out.splitlines())
    assert there == here
    assert "lora" in pushed("patch", "inspect", "admin/code@main").out
    missing = pushed("patch", "inspect", "admin/nothing")
    assert (missing.code, "admin/nothing: no such repository" in missing.err) == (3, True)
    assert pushed("patch", "inspect", "admin/code/elsewhere").code == 4
    assert pushed("patch", "inspect", "./nowhere/at-all").code == 3


def test_patches_are_pushed_shown_merged_ported_and_pulled(pushed: Command, folders: Path) -> None:
    shown = pushed("patch", "show", "admin/code")
    for told in ("lora", "admin/base (fits exactly)", "q_proj", "64 (F32)"):
        assert told in shown.out
    assert json.loads(pushed("patch", "show", "admin/code", "--json").out)["patches"][0]["rank_max"] == 2
    listed = [json.loads(line) for line in pushed("patch", "list", "--kind", "lora", "--json").out.splitlines()]
    assert {item["id"] for item in listed} >= {"admin/code", "admin/licences"}
    assert "admin/base-v2" in pushed("patch", "list", "base").out

    expression = "admin/base + 0.5*admin/code + 0.3*admin/licences"
    plan = json.loads(pushed("recipe", "explain", expression, "--json").out)
    assert plan["tensors_touched"] == 2
    assert "2 of 4 changed" in pushed("recipe", "explain", expression).out
    merged = pushed("merge", "run", expression, "--push", "admin/both", "--json")
    assert merged.code == 0, merged.err
    result = json.loads(merged.out)
    assert (result["repo"], result["recipe_digest"]) == ("admin/both", plan["digest"])
    assert pushed("recipe", "show", plan["digest"]).out.splitlines()[0].endswith(expression)
    assert "merge: succeeded" in merged.err
    lora = pushed("merge", "run", expression, "--as", "lora", "--push", "admin/both-lora")
    assert (lora.code, "admin/both-lora@" in lora.out) == (0, True)

    ported = pushed("port", "run", "admin/code", "--to", "admin/base-v2", "--push")
    assert ported.code == 0, ported.err
    assert "admin/code@ported/base-v2-" in ported.out
    assert "drift by layer" in ported.out
    report = pushed("port", "run", "admin/code", "--to", "admin/base", "--report-only", "--json")
    assert json.loads(report.out)["report"]["verdict"] == "identical"

    jobs = [json.loads(line) for line in pushed("job", "list", "--json").out.splitlines()]
    assert {job["kind"] for job in jobs} >= {"merge", "port"}
    assert "succeeded" in pushed("job", "watch", jobs[0]["id"]).out
    assert "succeeded" in pushed("job", "cancel", jobs[0]["id"]).out  # what ended stays as it ended

    pulled = pushed("patch", "pull", "admin/both", str(folders / "pulled"))
    assert pulled.out.strip() == str(folders / "pulled")
    inputs = [f"--input=admin/{name}={folders / name}" for name in ("base", "code", "licences")]
    assert pushed("merge", "run", expression, *inputs, "--out", str(folders / "local")).code == 0
    there, local = (load_file(folders / name / "model.safetensors") for name in ("pulled", "local"))
    assert all((there[name] == local[name]).all() for name in there.keys() | local.keys())


def test_recipes_are_saved_compared_run_again_and_deleted(pushed: Command, folders: Path) -> None:
    expression = "admin/base + 0.5*admin/code"
    first = json.loads(pushed("recipe", "save", "admin/support", expression, "--message", "half", "--json").out)
    assert (first["version"], first["author"]) == (1, "admin")
    assert "recipe/admin/support@2" in pushed("recipe", "save", "admin/support", f"{expression} + admin/licences").out
    [line] = map(json.loads, pushed("recipe", "list", "supp", "--author", "admin", "--json").out.splitlines())
    assert (line["id"], line["version"]) == ("admin/support", 2)
    shown = pushed("recipe", "show", "recipe/admin/support@1").out
    for told in (expression, "half", "version 2", "admin/code@"):
        assert told in shown
    listed = pushed("recipe", "versions", "admin/support").out.splitlines()
    assert [row.split()[0] for row in listed[1:]] == ["2", "1"]
    changed = pushed("recipe", "diff", "admin/support@1", "admin/support")
    assert "admin/licences: added with the weight 1" in changed.out
    assert pushed("recipe", "diff", "admin/support@1", expression).err.strip() == "no difference"
    done = pushed("recipe", "run", "admin/support@1", "--push", "admin/again", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["recipe_digest"] == first["digest"]
    assert "admin/again" in pushed("recipe", "run", "admin/support@1", "--latest", "--push", "admin/again").out
    again = pushed("recipe", "reproduce", "admin/again")
    assert (again.code, "reproduced: all" in again.out) == (0, True), again.err
    assert pushed("patch", "pull", "admin/again", str(folders / "again")).code == 0
    (folders / "again" / "config.json").write_text("{}")
    assert pushed("patch", "push", str(folders / "again"), "admin/again").code == 0
    differs = pushed("recipe", "reproduce", "admin/again")
    assert (differs.code, "config.json differs" in differs.err) == (4, True)
    assert pushed("recipe", "reproduce", "admin/base").code == 4
    assert pushed("recipe", "reproduce", "admin/nothing").code == 3
    assert pushed("recipe", "explain", "recipe/admin/support + admin/code").code == 0
    assert "(private)" in pushed("recipe", "set", "admin/support", "--name", "admin/help", "--private").out
    refused = pushed("recipe", "delete", "admin/help")
    assert (refused.code, "--yes" in refused.err) == (2, True)
    assert pushed("recipe", "delete", "admin/help@1", "--yes").code == 2
    assert pushed("recipe", "delete", "admin/help", "--yes").code == 0
    assert pushed("recipe", "show", "admin/help").code == 3
    for wrong in ("help", "admin/help@main", "a/b/c"):
        assert pushed("recipe", "show", wrong).code == 2


def test_what_is_not_there_exits_with_3_and_what_is_refused_with_4(pushed: Command, folders: Path) -> None:
    assert pushed("patch", "show", "admin/nothing").code == 3
    assert pushed("patch", "pull", "admin/nothing", str(folders / "x")).code == 3
    assert pushed("job", "show", "nothing").code == 3
    ended = pushed("merge", "run", "admin/base + 0.5*admin/nothing", "--push", "admin/x")
    assert (ended.code, "admin/nothing" in ended.err) == (3, True)
    ended = pushed("merge", "run", "admin/base + ", "--push", "admin/x")
    assert (ended.code, "at character" in ended.err) == (4, True)
    assert pushed("--token", "ah_wrong-token-wrong-token", "patch", "push", str(folders / "code")).code == 4
    (folders / "code" / "adapter_model.safetensors").write_bytes(b"\xff" * 64)
    broken = pushed("patch", "push", str(folders / "code"), "admin/broken")
    assert (broken.code, len(broken.err.strip().splitlines()[-1:])) == (4, 1)
    assert "adapter_model.safetensors" in broken.err


def test_users_are_added_over_rest_and_on_the_servers_own_machine(here: Command, server: Server) -> None:
    first = here("admin", "user", "add", "maria")
    assert (first.code, first.out.startswith("ah_")) == (0, True)
    second = here("admin", "user", "add", "otto", "--data", str(server.data), "--json")
    token = json.loads(second.out)["token"]
    assert json.loads(here("--token", token, "whoami", "--json").out)["name"] == "otto"
    assert "maria" in here("admin", "user", "list").out
    assert here("--token", token, "admin", "user", "add", "eve").code == 4


def test_login_keeps_the_token_for_this_command_and_for_hf(server: Server, tmp_path: Path) -> None:
    environment = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": server.url, "PATH": str(Path(sys.executable).parent)}

    def run(*command: str, text: str = "") -> str:
        done = subprocess.run(command, env=environment, input=text, capture_output=True, text=True, check=False)
        return f"{done.returncode} {done.stdout}{done.stderr}"

    own = (sys.executable, "-m", "adapterhub.cli")
    assert run(*own, "whoami").startswith("4 Error: ")
    assert run(*own, "login", text="ah_wrong-token-wrong-token\n").startswith("4 Error: ")
    assert "as admin" in run(*own, "login", text=TOKEN + "\n")
    assert "admin" in run(*own, "whoami")
    assert "admin" in run("hf", "auth", "whoami")


def test_doctor_tells_what_is_wrong(here: Command) -> None:
    well = [json.loads(line) for line in here("doctor", "--json").out.splitlines()]
    assert {one["what"] for one in well} >= {"torch", "device", "disk", "server", "token"}
    ill = here("--endpoint", "http://127.0.0.1:1", "doctor")
    assert (ill.code, "no adapterhub answers" in ill.out) == (4, True)


def test_chat_shows_the_answer_as_it_arrives(command: Command) -> None:
    pieces = [{"choices": [{"delta": {"content": text}}]} for text in ("Once ", "upon", None)]
    stream = "".join(f"data: {json.dumps(piece)}\n\n" for piece in pieces)
    broken = stream + 'data: {"error": {"message": "the engine is restarting"}}\n\n'
    answers = (Answer(200, body, "text/event-stream") for body in (stream + "data: [DONE]\n\n", broken))
    with serving(*answers) as fake:
        assert command("--endpoint", fake.url, "chat", "a/b", "--message", "Go on").out == "Once upon\n"
        ended = command("--endpoint", fake.url, "chat", "a/b", "--message", "Go on")
    assert (ended.code, ended.err) == (1, "Error: the engine is restarting\n")


@pytest.mark.slow
def test_several_models_answer_side_by_side(command: Command, tmp_path: Path) -> None:
    with running(tmp_path / "data", engine="embedded", device="cpu", threads="1") as speaking:

        def here(*words: str) -> Ended:
            return command("--endpoint", speaking.url, "--token", TOKEN, *words)

        for name, seed in (("speaks", 1), ("talks", 2)):
            models.llama(tmp_path / name, seed=seed)
            assert here("patch", "push", str(tmp_path / name)).code == 0
        asked = ("--message", "Once", "--max-tokens", "8", "--temperature", "0")
        alone = [here("chat", f"admin/{name}", *asked).out for name in ("speaks", "talks")]
        ended = here("chat", "admin/speaks", "admin/talks", *asked)
        one_is_missing = here("chat", "admin/speaks", "admin/nobody", *asked)
    assert ended.code == 0, ended.err
    assert ended.out == f"== admin/speaks\n{alone[0]}== admin/talks\n{alone[1]}"
    assert alone[0] != alone[1]
    assert (one_is_missing.code, alone[0] in one_is_missing.out) == (1, True)
    assert "admin/nobody: " in one_is_missing.err


def test_columns_on_a_terminal_show_each_answer_under_its_name() -> None:
    columns = [_Column("a/b", "Once upon", is_done=True), _Column("a + 0.5*c", "\x1b[31mIn the", error="lost")]
    console = Console(width=60, file=StringIO(), force_terminal=False)
    console.print(_grid(columns))
    assert isinstance(console.file, StringIO)
    shown = console.file.getvalue()
    assert all(text in shown for text in ("a/b", "a + 0.5*c", "Once upon", "In the", "lost"))
    assert "\x1b" not in shown


def _on(base: str, folder: Path) -> str:
    config = json.loads((folder / "adapter_config.json").read_text())
    return json.dumps(config | {"base_model_name_or_path": base})


def test_weights_are_searched_by_the_servers_job(here: Command, tmp_path: Path) -> None:
    models.lora(models.llama(tmp_path / "talk"), tmp_path / "rhyme", seed=1)
    (tmp_path / "rhyme" / "README.md").unlink()  # peft's names a path of this machine
    for name in ("talk", "rhyme"):
        ended = here("patch", "push", str(tmp_path / name))
        assert ended.code == 0, ended.err
    (tmp_path / "texts.jsonl").write_text('{"text": "the quick brown fox"}\n')
    asked = ["merge", "tune-weights", "admin/talk + 0.5*admin/rhyme", "--task", str(tmp_path / "texts.jsonl")]
    ended = here(*asked, "--evaluations", "5", "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert len(found["trials"]) == 5
    assert found["score"] <= found["start"]["score"]
    assert here("recipe", "show", found["recipe_digest"]).code == 0
    refused = here(*asked[:-2], "--command", "true")
    assert (refused.code, "--input" in refused.err) == (2, True)
