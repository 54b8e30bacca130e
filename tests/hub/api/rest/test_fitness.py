"""Pushing what is unfit with an unmodified huggingface_hub: refused in words, or kept with a flag that is seen."""

from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from safetensors.numpy import load, save

from tests.hub.api.rest.conftest import Site
from tests.hub.services.samples import lora


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A folder with a LoRA that has one infinite number."""
    for file in lora("org/elsewhere"):
        content = file.content
        if file.path.endswith(".safetensors"):
            tensors = {name: one.copy() for name, one in load(content).items()}
            tensors[max(tensors)][2, 1] = np.inf
            content = save(tensors)
        (tmp_path / file.path).write_bytes(content)
    return tmp_path


def test_a_push_of_infinity_is_refused_until_the_owner_wants_a_flag(site: Site, broken: Path) -> None:
    api = HfApi(endpoint=site.url, token=site.tokens["maria"])
    api.create_repo("maria/broken")
    with pytest.raises(HfHubHTTPError) as refused:
        api.upload_folder(repo_id="maria/broken", folder_path=broken, allow_patterns="adapter_*")
    assert refused.value.response.status_code == 422
    for told in ("adapter_model.safetensors: tensor", "lora_B", "first at (2, 1), 1 of 16 numbers"):
        assert told in str(refused.value)
    assert "adapter_model.safetensors" not in api.list_repo_files("maria/broken")

    chosen = site.client().put("/api/accounts/maria/settings", json={"unfit_patches": "flag"})
    assert chosen.json() == {"account": "maria", "unfit_patches": "flag", "effective": "flag"}
    api.upload_folder(repo_id="maria/broken", folder_path=broken, allow_patterns="adapter_*")
    [patch] = site.client().get("/api/patches/maria/broken").json()["patches"]
    assert "first at (2, 1), 1 of 16 numbers" in patch["problems"][0]
    assert patch["detail"]["non_finite"] == {"adapter_model.safetensors": patch["problems"]}
    page = site.client(None).get("/maria/broken").text
    assert 'role="alert"' in page
    assert "holds NaN or infinity" in page


def test_a_warning_is_shown_on_the_page_of_the_repository(site: Site, tmp_path: Path) -> None:
    api = HfApi(endpoint=site.url, token=site.tokens["maria"])
    api.create_repo("maria/idle")
    for file in lora("org/elsewhere"):
        tensors = load(file.content) if file.path.endswith(".safetensors") else {}
        idle = save({name: one * (0 if "lora_B" in name else 1) for name, one in tensors.items()})
        (tmp_path / file.path).write_bytes(idle if tensors else file.content)
    api.upload_folder(repo_id="maria/idle", folder_path=tmp_path, allow_patterns="adapter_*")
    [patch] = site.client().get("/api/patches/maria/idle").json()["patches"]
    assert "B is all zeros" in patch["warnings"][0]
    assert 'role="note"' in site.client(None).get("/maria/idle").text


def test_only_its_administrators_change_an_accounts_settings(site: Site) -> None:
    path = "/api/accounts/maria/settings"
    assert site.client("stranger").put(path, json={"unfit_patches": "flag"}).status_code == 403
    assert site.client("stranger").get(path).status_code == 403
    assert site.client(None).put(path, json={"unfit_patches": "flag"}).status_code == 401
    assert site.client().put(path, json={"unfit_patches": "maybe"}).status_code == 400
    assert site.client().put("/api/accounts/nobody/settings", json={"unfit_patches": None}).status_code == 404
    assert site.client().get(path).json() == {"account": "maria", "unfit_patches": None, "effective": "refuse"}


def test_an_organisation_chooses_for_its_repositories(site: Site) -> None:
    site.client().post("/api/organisations", json={"name": "team"})
    site.client().put("/api/organisations/team/members/stranger", json={"role": "write"})
    path = "/api/accounts/team/settings"
    assert site.client("stranger").put(path, json={"unfit_patches": "flag"}).status_code == 403
    assert site.client("stranger").get(path).json()["effective"] == "refuse"
    assert site.client().put(path, json={"unfit_patches": "flag"}).json()["effective"] == "flag"
