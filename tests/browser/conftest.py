"""Chromium, driven by playwright, on a real server."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import HfApi

from tests.clients.server import Server, running
from tests.hub.services.samples import lora, model
from tests.servers import missing


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium: AHTEST_CHROMIUM, else the one on the path.

    It ends with the module: playwright keeps an event loop running in this thread, and a thread has only one.
    """
    path = os.environ.get("AHTEST_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        missing("no Chromium: install Debian's chromium, or set AHTEST_CHROMIUM")
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-sync"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a base and a patch on it, and a job process that draws pictures."""
    folder = tmp_path_factory.mktemp("browser")
    with running(folder / "data", workers="1", admin_name="ann") as server:
        api = HfApi(endpoint=server.url, token=server.token)
        for repo_id, files in {"ann/base": model(layers=4), "ann/code": lora("ann/base", layers=4)}.items():
            local = folder / repo_id
            for file in files:
                (local / file.path).parent.mkdir(parents=True, exist_ok=True)
                (local / file.path).write_bytes(file.content)
            (local / "README.md").write_text(f"---\nlicense: apache-2.0\n---\n# {repo_id}\n\nMade by a test.\n")
            api.create_repo(repo_id)
            api.upload_folder(repo_id=repo_id, folder_path=local)
        _save_recipes(server)
        yield server


def _save_recipes(server: Server) -> None:
    """Two versions of a recipe, and the model that the second makes."""
    headers = {"Authorization": f"Bearer {server.token}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=60) as http:
        for expression, message in (
            ("ann/base + 0.5*ann/code", "half of it"),
            ("ties(ann/base; 0.7*ann/code, density=0.5)", "trimmed, and more of it"),
        ):
            asked = {"name": "ann/support", "expression": expression, "message": message}
            http.post("/api/recipes", json=asked).raise_for_status()
        http.post("/api/recipes/ann/support/runs", json={"push": "ann/merged"}).raise_for_status()


@pytest.fixture
def page(chromium: Any, catalogue: Server) -> Iterator[Any]:
    """A fresh tab that fails the test on a script error, a console error, or a request to anywhere else."""
    context = chromium.new_context(base_url=catalogue.url, viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    wrong: list[str] = []
    tab.on("pageerror", lambda error: wrong.append(f"script: {error}"))
    tab.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    tab.on("request", lambda request: None if request.url.startswith(catalogue.url) else wrong.append(request.url))
    yield tab
    context.close()
    assert wrong == []


def screenshot(tab: Any, name: str) -> None:
    """Keep a picture of the whole page in the folder AHTEST_SCREENSHOTS names, where it does."""
    folder = os.environ.get("AHTEST_SCREENSHOTS")
    if folder:
        tab.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)
