import os
from pathlib import Path

import pytest

from tests.clients.server import Server, run_client


@pytest.fixture
def hf(python: Path) -> str:
    """The command of the client."""
    return str(python.with_name("hf"))


@pytest.mark.every_client
def test_the_hf_command_logs_in_uploads_and_downloads(server: Server, hf: str, repo_id: str, tmp_path: Path) -> None:
    home = tmp_path / "hf"
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text("text")
    (folder / "deep" / "b.bin").write_bytes(os.urandom(1 << 20))
    run_client(server, home, [hf, "auth", "login", "--token", server.token])
    assert "admin" in run_client(server, home, [hf, "auth", "whoami"]).stdout
    run_client(server, home, [hf, "upload", repo_id, str(folder), "--commit-message", "from the command line"])
    back = tmp_path / "back"
    run_client(server, home, [hf, "download", repo_id, "--local-dir", str(back)])
    for name in ("a.txt", "deep/b.bin"):
        assert (back / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.every_client
def test_the_hf_command_takes_patterns_lists_and_names_in_any_script(
    server: Server, hf: str, repo_id: str, tmp_path: Path
) -> None:
    home, folder, back = tmp_path / "hf", tmp_path / "folder", tmp_path / "back"
    contents = {"模型 一.txt": "一", "deep/100% #1?.txt": "%", "skip.log": "log"}
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    run_client(server, home, [hf, "auth", "login", "--token", server.token])
    run_client(server, home, [hf, "upload", repo_id, str(folder), "--exclude", "*.log"])
    run_client(server, home, [hf, "download", repo_id, "--include", "*.txt", "--local-dir", str(back)])
    found = {str(path.relative_to(back)): path.read_text() for path in back.rglob("*.txt")}
    assert found == {name: content for name, content in contents.items() if name.endswith(".txt")}
    word = repo_id.partition("/")[2]
    if Path(hf).parent.parent.name != "0.36":  # which lists nothing
        listed = run_client(server, home, [hf, "models", "ls", "--author", "admin", "--search", word, "--quiet"])
        assert listed.stdout.split() == [repo_id]
    run_client(server, home, [hf, "download", repo_id, "deep/100% #1?.txt"])


@pytest.mark.slow
@pytest.mark.parametrize("python", ["0.36"], indirect=True)
def test_the_command_of_old_scripts_logs_in_uploads_and_downloads(
    server: Server, python: Path, repo_id: str, tmp_path: Path
) -> None:
    command, home = str(python.with_name("huggingface-cli")), tmp_path / "hf"
    (tmp_path / "a.bin").write_bytes(os.urandom(1 << 20))
    run_client(server, home, [command, "login", "--token", server.token])
    assert "admin" in run_client(server, home, [command, "whoami"]).stdout
    run_client(server, home, [command, "upload", repo_id, str(tmp_path / "a.bin"), "a.bin"])
    run_client(server, home, [command, "download", repo_id, "a.bin", "--local-dir", str(tmp_path / "back")])
    assert (tmp_path / "back" / "a.bin").read_bytes() == (tmp_path / "a.bin").read_bytes()
