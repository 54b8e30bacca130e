import os
import sys
from pathlib import Path

from tests.clients.server import Server, run_client

HF = str(Path(sys.executable).with_name("hf"))


def test_the_hf_command_logs_in_uploads_and_downloads(server: Server, repo_id: str, tmp_path: Path) -> None:
    home = tmp_path / "hf"
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text("text")
    (folder / "deep" / "b.bin").write_bytes(os.urandom(1 << 20))
    run_client(server, home, [HF, "auth", "login", "--token", server.token])
    assert "admin" in run_client(server, home, [HF, "auth", "whoami"]).stdout
    run_client(server, home, [HF, "upload", repo_id, str(folder), "--commit-message", "from the command line"])
    back = tmp_path / "back"
    run_client(server, home, [HF, "download", repo_id, "--local-dir", str(back)])
    for name in ("a.txt", "deep/b.bin"):
        assert (back / name).read_bytes() == (folder / name).read_bytes()


def test_the_hf_command_takes_patterns_lists_and_names_in_any_script(
    server: Server, repo_id: str, tmp_path: Path
) -> None:
    home, folder, back = tmp_path / "hf", tmp_path / "folder", tmp_path / "back"
    contents = {"模型 一.txt": "一", "deep/100% #1?.txt": "%", "skip.log": "log"}
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    run_client(server, home, [HF, "auth", "login", "--token", server.token])
    run_client(server, home, [HF, "upload", repo_id, str(folder), "--exclude", "*.log"])
    run_client(server, home, [HF, "download", repo_id, "--include", "*.txt", "--local-dir", str(back)])
    found = {str(path.relative_to(back)): path.read_text() for path in back.rglob("*.txt")}
    assert found == {name: content for name, content in contents.items() if name.endswith(".txt")}
    word = repo_id.partition("/")[2]
    listed = run_client(server, home, [HF, "models", "ls", "--author", "admin", "--search", word, "--quiet"])
    assert listed.stdout.split() == [repo_id]
    run_client(server, home, [HF, "download", repo_id, "deep/100% #1?.txt"])
