"""The patches of one repository over REST: listed page after page, searched, shown singly."""

from adapterhub.hub.services import repos
from adapterhub.hub.services.commits import commit
from tests.hub.api.rest.conftest import Site
from tests.hub.services.samples import lora

REPO = "maria/voices"


def pushed(site: Site) -> list[str]:
    """The folders of seven patches in one repository."""
    folders = [f"voices/{number}" for number in range(7)]
    repos.create(site.hub, site.caller("maria"), REPO, private=True)
    files = [one for folder in folders for one in lora("maria/base", folder=f"{folder}/")]
    commit(site.hub, site.caller("maria"), REPO, "main", files, "push")
    return folders


def test_pages_follow_one_another_until_all_is_listed(site: Site) -> None:
    folders, found = pushed(site), []
    url = f"{site.url}/api/patches/{REPO}/folders?limit=3"
    while url:
        page = site.client().get(url).json()
        found += [one["path"] for one in page["items"]]
        assert page["total"] == 7
        url = page["next"]
    assert found == folders


def test_one_is_shown_alone_with_its_own_files(site: Site) -> None:
    pushed(site)
    view = site.client().get(f"/api/patches/{REPO}", params={"path": "voices/4"}).json()
    assert [one["path"] for one in view["patches"]] == ["voices/4"]
    assert view["patch_count"] == 7
    assert {file["path"].rpartition("/")[0] for file in view["files"]} == {"voices/4"}


def test_what_is_not_there_or_not_for_the_caller_is_404(site: Site) -> None:
    pushed(site)
    absent = site.client().get(f"/api/patches/{REPO}", params={"path": "voices/9"})
    assert (absent.status_code, absent.json()["code"]) == (404, "patch_not_found")
    assert "voices/9" in absent.json()["detail"]
    assert site.client("stranger").get(f"/api/patches/{REPO}/folders").status_code == 404
    assert site.client().get(f"/api/patches/{REPO}/folders", params={"limit": 0}).status_code == 400
