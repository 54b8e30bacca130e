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
