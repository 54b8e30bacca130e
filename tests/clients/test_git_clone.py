"""The real git and git-lfs, cloning over HTTP."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from tests import servers
from tests.clients.server import Server, running

pytestmark = pytest.mark.slow

MIB = 1 << 20
Git = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def git(tmp_path: Path) -> Git:
    """Runs git in a folder, without anybody's configuration and credentials; fails where git fails, unless asked."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "LC_ALL": "C.UTF-8"}
    environment |= {"GIT_TERMINAL_PROMPT": "0", "GIT_CONFIG_NOSYSTEM": "1"}

    def run(*arguments: str, cwd: Path = tmp_path, check: bool = True) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            ["git", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0 or not check, done.stderr
        return done

    return run


@pytest.fixture
def lfs(git: Git) -> Git:
    """git, whose clones fetch large files."""
    if shutil.which("git-lfs") is None:
        servers.missing("no git-lfs: install Debian's git-lfs")
    git("lfs", "install")
    return git


@pytest.fixture
def api(server: Server) -> HfApi:
    return HfApi(endpoint=server.url, token=server.token)


def fill(api: HfApi, repo_id: str, *, private: bool = False) -> tuple[str, bytes]:
    """The last commit of a repository with three commits, a branch and a tag, and the content of its large file."""
    large = os.urandom(3 * MIB)
    api.create_repo(repo_id, private=private)
    adds = [CommitOperationAdd("deep/ä b.txt", b"eins\n"), CommitOperationAdd("weights.bin", large)]
    first = api.create_commit(repo_id, adds, commit_message="first", commit_description="why\n\nmore")
    api.create_tag(repo_id, tag="v1", revision=first.oid)
    api.create_branch(repo_id, branch="feat/x")
    api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=repo_id, revision="feat/x")
    last = api.create_commit(repo_id, [CommitOperationDelete("deep/ä b.txt")], commit_message="second")
    return last.oid, large


def with_token(server: Server, repo_id: str) -> str:
    return f"{server.url.replace('http://', f'http://admin:{server.token}@')}/{repo_id}"


def test_a_clone_has_the_commits_that_the_hub_has(
    server: Server, api: HfApi, git: Git, repo_id: str, tmp_path: Path
) -> None:
    head, large = fill(api, repo_id)
    for suffix in ("", ".git"):
        git("clone", f"{server.url}/{repo_id}{suffix}", f"here{suffix}")
    here = tmp_path / "here"
    assert git("rev-parse", "HEAD", cwd=here).stdout.strip() == head
    assert git("fsck", "--full", "--strict", cwd=here).returncode == 0
    refs = git("for-each-ref", "--format=%(refname)", cwd=here).stdout.split()
    assert set(refs) >= {"refs/heads/main", "refs/remotes/origin/feat/x", "refs/tags/v1"}
    shown = git("log", "--format=%H", cwd=here).stdout.split()
    assert shown == [one.commit_id for one in api.list_repo_commits(repo_id)]
    git("checkout", "--quiet", "v1", cwd=here)
    assert (here / "deep" / "ä b.txt").read_bytes() == b"eins\n"
    pointer = (here / "weights.bin").read_text()
    assert pointer.splitlines()[1] == f"oid sha256:{hashlib.sha256(large).hexdigest()}"


def test_a_fetch_brings_what_came_since_in_each_version_of_the_protocol(
    server: Server, api: HfApi, git: Git, repo_id: str, tmp_path: Path
) -> None:
    fill(api, repo_id)
    for version in ("0", "1", "2"):
        git("-c", f"protocol.version={version}", "clone", f"{server.url}/{repo_id}", version)
    git("clone", "--depth", "1", f"{server.url}/{repo_id}", "shallow")
    assert git("rev-list", "--count", "HEAD", cwd=tmp_path / "shallow").stdout.strip() == "1"
    for number in range(40):
        api.upload_file(path_or_fileobj=f"{number}".encode(), path_in_repo="n.txt", repo_id=repo_id)
    head = api.model_info(repo_id).sha
    for folder in ("0", "1", "2", "shallow"):
        git("pull", "--quiet", cwd=tmp_path / folder)
        assert git("rev-parse", "HEAD", cwd=tmp_path / folder).stdout.strip() == head
        assert git("fsck", "--strict", cwd=tmp_path / folder).returncode == 0
    assert git("fetch", cwd=tmp_path / "0").stderr == ""
    git("fetch", "--unshallow", cwd=tmp_path / "shallow")
    counts = {git("rev-list", "--count", "HEAD", cwd=tmp_path / one).stdout for one in ("0", "shallow")}
    assert counts == {"43\n"}


def test_git_lfs_fetches_large_files_of_a_private_repository(
    server: Server, api: HfApi, lfs: Git, repo_id: str, tmp_path: Path
) -> None:
    _, large = fill(api, repo_id, private=True)
    lfs("clone", with_token(server, repo_id), "here")
    assert (tmp_path / "here" / "weights.bin").read_bytes() == large
    assert lfs("status", "--short", cwd=tmp_path / "here").stdout == ""
    lfs("-c", "filter.lfs.smudge=git-lfs smudge --skip -- %f", "-c", "filter.lfs.process=git-lfs filter-process --skip",
        "clone", with_token(server, repo_id), "late")  # fmt: skip
    assert (tmp_path / "late" / "weights.bin").stat().st_size < 200
    lfs("lfs", "pull", cwd=tmp_path / "late")
    assert (tmp_path / "late" / "weights.bin").read_bytes() == large


def test_who_may_not_read_is_asked_to_log_in_and_learns_nothing(
    server: Server, api: HfApi, git: Git, repo_id: str
) -> None:
    fill(api, repo_id, private=True)
    told = []
    for name in (repo_id, f"{repo_id}-nothing"):
        answer = httpx.get(f"{server.url}/{name}/info/refs?service=git-upload-pack")
        told.append((answer.status_code, answer.text, answer.headers["WWW-Authenticate"]))
        batch = {"operation": "download", "objects": [{"oid": "0" * 64, "size": 1}]}
        answer = httpx.post(f"{server.url}/{name}.git/info/lfs/objects/batch", json=batch)
        told.append((answer.status_code, answer.text, answer.headers["LFS-Authenticate"]))
        assert git("clone", f"{server.url}/{name}", check=False).returncode != 0
    assert told[:2] == told[2:]
    assert told[0][0] == told[1][0] == 401
    missing = git("clone", with_token(server, f"{repo_id}-nothing"), check=False)
    assert "no such repository, or it is private" in missing.stderr
    assert git("clone", with_token(server, repo_id).replace("ah_the", "ah_not"), "x", check=False).returncode != 0


def test_a_push_is_refused_with_what_to_use(server: Server, api: HfApi, git: Git, repo_id: str, tmp_path: Path) -> None:
    fill(api, repo_id)
    git("clone", with_token(server, repo_id), "here")
    here = tmp_path / "here"
    git("-c", "user.name=n", "-c", "user.email=e@x", "commit", "--allow-empty", "-m", "mine", cwd=here)
    done = git("push", cwd=here, check=False)
    assert done.returncode != 0
    assert "this hub takes no git push; send files with `hf upload" in done.stderr


def test_a_link_to_a_large_file_is_for_that_file_alone(server: Server, api: HfApi, repo_id: str) -> None:
    _, large = fill(api, repo_id)
    _, hidden = fill(api, f"{repo_id}-2", private=True)
    other = hashlib.sha256(hidden).hexdigest()
    oid = hashlib.sha256(large).hexdigest()
    batch = {"operation": "download", "objects": [{"oid": one, "size": 1} for one in (oid, other, "no digest")]}
    told = httpx.post(f"{server.url}/{repo_id}.git/info/lfs/objects/batch", json=batch).json()["objects"]
    assert [one.get("error", {}).get("code") for one in told] == [None, 404, 400]
    href = told[0]["actions"]["download"]["href"]
    assert httpx.get(href).content == large
    part = httpx.get(href, headers={"Range": "bytes=1-3"})
    assert (part.status_code, part.content) == (206, large[1:4])
    assert httpx.get(href.replace(oid, other)).status_code == 401
    assert httpx.get(href[:-4]).status_code == 401
    api.delete_repo(repo_id)
    assert httpx.get(href).status_code == 401


def test_what_is_no_request_of_git_is_refused(server: Server, api: HfApi, repo_id: str) -> None:
    fill(api, repo_id)
    url = f"{server.url}/{repo_id}"
    assert httpx.get(f"{url}/info/refs").status_code == 403
    for body in (b"nonsense", b"0032want " + b"0" * 40 + b"\n0000", b"fff", b"0004"):
        answer = httpx.post(f"{url}/git-upload-pack", content=body)
        assert (answer.status_code, answer.headers["X-Error-Code"]) == (400, "InvalidRequest"), body
    packed = httpx.post(f"{url}/git-upload-pack", content=b"x", headers={"Content-Encoding": "gzip"})
    assert packed.status_code == 400
    assert httpx.post(f"{url}/git-upload-pack", content=b"x", headers={"Content-Encoding": "br"}).status_code == 415
    assert httpx.post(f"{url}/git-receive-pack", content=b"x").status_code == 403


def test_an_old_name_leads_to_the_new_one_and_a_gate_is_told(
    server: Server, api: HfApi, git: Git, repo_id: str
) -> None:
    fill(api, repo_id)
    api.move_repo(repo_id, f"{repo_id}-new")
    for name in (repo_id, f"{repo_id}.git"):
        git("clone", f"{server.url}/{name}", name.replace("/", "-"))
    api.update_repo_settings(f"{repo_id}-new", gated="manual")
    url = f"{server.url}/{repo_id}-new/info/refs?service=git-upload-pack"
    with server.http() as http:
        user = f"u{repo_id[-6:]}"
        token = http.post("/api/admin/users", json={"name": user}).json()["token"]
    assert httpx.get(url).status_code == 401
    gated = httpx.get(url, auth=(user, token))
    assert (gated.status_code, gated.headers["X-Error-Code"]) == (403, "GatedRepo")
    git("clone", with_token(server, f"{repo_id}-new"), "members")


def test_a_pack_above_the_limit_is_refused(git: Git, repo_id: str, tmp_path: Path) -> None:
    with running(tmp_path / "data", git_max_bytes=str(MIB)) as server:
        api = HfApi(endpoint=server.url, token=server.token)
        api.create_repo(repo_id)
        for number in range(3):
            text = os.urandom(500_000).hex().encode()
            api.upload_file(path_or_fileobj=text, path_in_repo=f"{number}.txt", repo_id=repo_id)
        assert git("clone", f"{server.url}/{repo_id}", check=False).returncode != 0
        spool = tmp_path / "data" / "spool"
        assert list(spool.iterdir()) == []
