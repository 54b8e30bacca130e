"""What users do with accounts, likes, gates and collections; each function run in a process of its own.

As `scenarios.py`: nothing is imported before a scenario runs. People are made over our own REST, by the administrator
whose token is in HF_TOKEN; each comes with a client of their own.
"""

import json
import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen


def rest(method: str, path: str, body: Any = None, token: str | None = None) -> Any:
    """The JSON that our own REST answers; token: the administrator's by default."""
    request = Request(
        os.environ["HF_ENDPOINT"] + path,
        data=None if body is None else json.dumps(body).encode(),
        method=method,
        headers={"Authorization": f"Bearer {token or os.environ['HF_TOKEN']}", "Content-Type": "application/json"},
    )
    with urlopen(request) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def person(prefix: str, role: str = "write", **token: Any) -> Any:
    """The client of a fresh user, `api.me` being their name; token: of a token made for them, in place of the first."""
    from huggingface_hub import HfApi

    name = f"{prefix}{secrets.token_hex(4)}"
    first = rest("POST", "/api/admin/users", {"name": name, "fullname": prefix.title(), "email": f"{name}@example.org"})
    text = first["token"]
    if role != "write":
        text = with_token(text, role, **token)
    api: Any = HfApi(token=text)
    api.me = name
    return api


def with_token(owner: str, role: str, **token: Any) -> str:
    """Another token of the account that `owner` is a token of."""
    made = rest("POST", "/api/tokens", {"name": role, "role": role, **token}, owner)
    return str(made["token"])


def team(api: Any, **members: str) -> str:
    """A fresh organisation of `api`'s account; members: name -> role."""
    name = f"team{secrets.token_hex(4)}"
    rest("POST", "/api/organisations", {"name": name}, api.token)
    for member, role in members.items():
        rest("PUT", f"/api/organisations/{name}/members/{member}", {"role": role}, api.token)
    return name


def refused(kind: type[BaseException], work: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """The error of that class that `work` raises."""
    try:
        done = work(*arguments, **named)
        if hasattr(done, "__next__"):
            list(done)
    except kind as error:
        return error
    raise AssertionError(f"{work.__name__}{arguments} was not refused")


def who_am_i() -> None:
    from huggingface_hub import HfApi

    ann = person("ann")
    bob = person("bob")
    org = team(ann, **{bob.me: "contributor"})
    me = bob.whoami()
    assert (me["type"], me["name"], me["fullname"]) == ("user", bob.me, "Bob")
    assert [(o["name"], o["roleInOrg"]) for o in me["orgs"]] == [(org, "contributor")]
    assert me["auth"]["accessToken"]["role"] == "write"
    scoped = [{"name": org, "permissions": ["repo.content.read"]}]
    fine = HfApi(token=with_token(bob.token, "fine-grained", scoped=scoped, reads_gated=True))
    token = fine.whoami()["auth"]["accessToken"]
    assert token["role"] == "fineGrained"
    assert token["fineGrained"]["canReadGatedRepos"] is True
    [scope] = token["fineGrained"]["scoped"]
    assert (scope["entity"]["type"], scope["entity"]["name"]) == ("org", org)
    assert scope["permissions"] == ["repo.content.read"]


def fine_grained_tokens() -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    ann = person("ann")
    inside, outside = f"{ann.me}/inside", f"{ann.me}/outside"
    for repo_id in (inside, outside):
        ann.create_repo(repo_id, private=True)
        ann.upload_file(path_or_fileobj=b"text", path_in_repo="a.txt", repo_id=repo_id)

    def fine(*permissions: str) -> Any:
        scoped = [{"name": inside, "permissions": permissions}]
        return HfApi(token=with_token(ann.token, "fine-grained", scoped=scoped))

    writer, reader = fine("repo.write"), fine("repo.content.read")
    for api in (writer, reader):
        assert [m.id for m in api.list_models(author=ann.me)] == [inside]
        assert api.file_exists(inside, "a.txt")
        refused(RepositoryNotFoundError, api.model_info, outside)
        refused(RepositoryNotFoundError, api.hf_hub_download, outside, "a.txt")
        refused(HfHubHTTPError, api.create_repo, f"{ann.me}/more")
    writer.upload_file(path_or_fileobj=b"new", path_in_repo="b.txt", repo_id=inside)
    writer.auth_check(inside)
    error = refused(HfHubHTTPError, reader.upload_file, path_or_fileobj=b"no", path_in_repo="c.txt", repo_id=inside)
    assert (error.response.status_code, "repo.write" in str(error)) == (403, True)
    refused(RepositoryNotFoundError, writer.upload_file, path_or_fileobj=b"", path_in_repo="c.txt", repo_id=outside)


def contributors() -> None:
    from huggingface_hub.errors import HfHubHTTPError

    ann = person("ann")
    bob = person("bob")
    org = team(ann, **{bob.me: "contributor"})
    ann.create_repo(f"{org}/hers", private=True)
    bob.create_repo(f"{org}/his")
    bob.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id=f"{org}/his")
    assert bob.repo_exists(f"{org}/hers")
    refused(HfHubHTTPError, bob.upload_file, path_or_fileobj=b"x", path_in_repo="a.txt", repo_id=f"{org}/hers")
    refused(HfHubHTTPError, bob.delete_repo, f"{org}/his")
    ann.delete_repo(f"{org}/his")


def overviews() -> None:
    from huggingface_hub.errors import HfHubHTTPError

    ann = person("ann")
    bob = person("bob")
    org = team(ann, **{bob.me: "read"})
    ann.create_repo(f"{org}/open")
    ann.create_repo(f"{org}/closed", private=True)
    ann.upload_file(path_or_fileobj=b"x" * 1000, path_in_repo="a.txt", repo_id=f"{org}/open")
    eve = person("eve")
    user = eve.get_user_overview(bob.me)
    assert (user.username, user.fullname, user.num_models, user.num_followers) == (bob.me, "Bob", 0, 0)
    assert [one.name for one in user.orgs] == [org]
    if hasattr(eve, "get_organization_overview"):
        seen, known = eve.get_organization_overview(org), ann.get_organization_overview(org)
        assert (seen.name, seen.num_users, seen.num_models, known.num_models) == (org, 2, 1, 2)
    assert sorted(one.username for one in eve.list_organization_members(org)) == sorted([ann.me, bob.me])
    assert list(eve.list_user_followers(bob.me)) == list(eve.list_user_following(bob.me)) == []
    if hasattr(eve, "list_organization_followers"):
        assert list(eve.list_organization_followers(org)) == []
    refused(HfHubHTTPError, eve.get_user_overview, "nobody-of-that-name")
    refused(HfHubHTTPError, eve.get_user_overview, org)
    if hasattr(ann, "list_user_repos"):
        held = list(ann.list_user_repos(org))
        assert [(one.id, one.visibility) for one in held] == [(f"{org}/closed", "private"), (f"{org}/open", "public")]
        assert held[1].storage > held[0].storage > 0
        assert abs(sum(one.storage_percent for one in held) - 100) < 0.01
        assert list(ann.list_user_repos()) == []
        refused(HfHubHTTPError, eve.list_user_repos, org)


def likes(repo_id: str) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    api = HfApi()
    ann = person("ann")
    bob = person("bob")
    api.create_repo(repo_id)
    api.create_repo(f"{repo_id}-hidden", private=True)
    for one in (ann, bob, bob):
        rest("POST", f"/api/models/{repo_id}/like", token=one.token)
    assert ann.model_info(repo_id).likes == 2
    assert [user.username for user in ann.list_repo_likers(repo_id)] == [bob.me, ann.me]
    assert ann.list_liked_repos().models == [repo_id]
    assert ann.list_liked_repos(bob.me).total == 1
    assert next(iter(ann.list_models(sort="likes"))).id == repo_id
    ann.unlike(repo_id)
    ann.unlike(repo_id)
    assert ann.model_info(repo_id).likes == 1
    assert ann.list_liked_repos().total == 0
    refused(RepositoryNotFoundError, ann.unlike, f"{repo_id}-hidden")
    refused(RepositoryNotFoundError, ann.list_repo_likers, f"{repo_id}-hidden")
    refused(HfHubHTTPError, HfApi(token=with_token(ann.token, "read")).unlike, repo_id)
    api.update_repo_settings(repo_id, private=True)
    assert bob.list_liked_repos().total == 0


def model_tags(repo_id: str) -> None:
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repo_id)
    card = b"---\nlicense: mit\nlibrary_name: peft\nlanguage: [en, de]\ndatasets: [a/b]\ntags: [prose]\n---\n# A card\n"
    api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id=repo_id)
    tags = api.get_model_tags()
    assert {"id": "license:mit", "label": "mit", "type": "license"} in tags["license"]
    assert {"id": "dataset:a/b", "label": "a/b", "type": "dataset"} in tags["dataset"]
    assert {"en", "de"} <= {tag["id"] for tag in tags["language"]}
    assert "peft" in [tag["id"] for tag in tags["library"]]
    assert "prose" in [tag["id"] for tag in tags["other"]]


def gates(repo_id: str) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    api = HfApi()
    ann = person("ann")
    bob = person("bob")
    api.create_repo(repo_id)
    api.upload_file(path_or_fileobj=b"weights", path_in_repo="a.txt", repo_id=repo_id)
    refused(HfHubHTTPError, api.list_pending_access_requests, repo_id)
    api.update_repo_settings(repo_id, gated="manual")
    assert ann.model_info(repo_id).gated == "manual"
    for work in (ann.auth_check, HfApi(token=False).auth_check):
        error = refused(GatedRepoError, work, repo_id)
        assert f"/{repo_id}" in str(error)
    assert error.response.status_code == 401
    refused(GatedRepoError, ann.hf_hub_download, repo_id, "a.txt")

    asked = rest("POST", f"/api/access-requests/{repo_id}", {"fields": {"Company": "A"}}, ann.token)
    assert asked["status"] == "pending"
    [request] = api.list_pending_access_requests(repo_id)
    assert (request.username, request.fullname, request.status) == (ann.me, "Ann", "pending")
    assert (request.email, request.fields) == (f"{ann.me}@example.org", {"Company": "A"})
    assert "waits" in str(refused(GatedRepoError, ann.auth_check, repo_id))
    api.accept_access_request(repo_id, ann.me)
    ann.auth_check(repo_id)
    assert Path(ann.hf_hub_download(repo_id, "a.txt")).read_bytes() == b"weights"
    assert [one.username for one in api.list_accepted_access_requests(repo_id)] == [ann.me]
    assert refused(HfHubHTTPError, api.accept_access_request, repo_id, ann.me).response.status_code == 404

    api.cancel_access_request(repo_id, ann.me)
    refused(GatedRepoError, ann.auth_check, repo_id)
    api.reject_access_request(repo_id, ann.me, rejection_reason="not today")
    assert "not today" in str(refused(GatedRepoError, ann.auth_check, repo_id))
    assert [one.username for one in api.list_rejected_access_requests(repo_id)] == [ann.me]
    assert list(api.list_pending_access_requests(repo_id)) == []

    api.grant_access(repo_id, bob.me)
    bob.auth_check(repo_id)
    [given] = api.list_accepted_access_requests(repo_id)
    assert (given.username, given.email) == (bob.me, None)
    assert refused(HfHubHTTPError, api.grant_access, repo_id, bob.me).response.status_code == 400
    assert refused(HfHubHTTPError, api.grant_access, repo_id, "nobody-here").response.status_code == 404
    for work in (bob.list_pending_access_requests, bob.list_accepted_access_requests):
        assert refused(HfHubHTTPError, work, repo_id).response.status_code == 403
    assert refused(HfHubHTTPError, bob.grant_access, repo_id, ann.me).response.status_code == 403
    api.update_repo_settings(repo_id, gated=False)
    ann.auth_check(repo_id)


def automatic_gate(repo_id: str) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError

    api = HfApi()
    ann = person("ann")
    api.create_repo(repo_id)
    api.upload_file(path_or_fileobj=b"weights", path_in_repo="a.txt", repo_id=repo_id)
    api.update_repo_settings(repo_id, gated="auto")
    refused(GatedRepoError, ann.hf_hub_download, repo_id, "a.txt")
    assert rest("POST", f"/api/access-requests/{repo_id}", token=ann.token)["status"] == "accepted"
    assert Path(ann.hf_hub_download(repo_id, "a.txt")).read_bytes() == b"weights"
    fine: Any = HfApi(
        token=with_token(ann.token, "fine-grained", scoped=[{"name": ann.me, "permissions": ["repo.write"]}])
    )
    refused(GatedRepoError, fine.auth_check, repo_id)
    HfApi(token=with_token(ann.token, "fine-grained", reads_gated=True)).auth_check(repo_id)


def disabled(repo_id: str) -> None:
    from huggingface_hub import HfApi, hf_hub_url
    from huggingface_hub.errors import DisabledRepoError, RepositoryNotFoundError

    api = HfApi()
    ann = person("ann")
    mine = f"{ann.me}/mine"
    ann.create_repo(mine)
    ann.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id=mine)
    rest("PUT", f"/api/admin/repos/{mine}", {"disabled": True, "reason": "stolen"})
    for one in (ann, HfApi(token=False)):
        refused(DisabledRepoError, one.model_info, mine)
        refused(DisabledRepoError, one.get_hf_file_metadata, url=hf_hub_url(mine, "a.txt"))
        assert mine not in [model.id for model in one.list_models(author=ann.me)]
    refused(DisabledRepoError, ann.upload_file, path_or_fileobj=b"y", path_in_repo="b.txt", repo_id=mine)
    assert api.model_info(mine).disabled is True
    rest("PUT", f"/api/admin/repos/{mine}", {"disabled": False})
    assert ann.model_info(mine).disabled is False
    ann.update_repo_settings(mine, private=True)
    rest("PUT", f"/api/admin/repos/{mine}", {"disabled": True})
    refused(RepositoryNotFoundError, person("eve").model_info, mine)


def collections(repo_id: str) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    ann = person("ann")
    bob = person("bob")
    admin = HfApi()
    for name in ("a", "b", "c"):
        ann.create_repo(f"{ann.me}/{name}", private=name == "c")
    made = ann.create_collection("My Best: Adapters!", description="The best", private=False)
    assert made.slug.startswith(f"{ann.me}/my-best-adapters-")
    assert len(made.slug.rpartition("-")[2]) == 24
    assert (made.title, made.owner, made.private, made.items) == ("My Best: Adapters!", ann.me, False, [])
    assert refused(HfHubHTTPError, ann.create_collection, "My Best: Adapters!").response.status_code == 409
    assert ann.create_collection("My Best: Adapters!", exists_ok=True).slug == made.slug
    refused(HfHubHTTPError, bob.create_collection, "Not mine", namespace=ann.me)

    for name in ("a", "b", "c"):
        held = ann.add_collection_item(made.slug, f"{ann.me}/{name}", "model", note=f"note {name}")
    assert next((i.item_id, i.item_type, i.position, i.note) for i in held.items) == (
        f"{ann.me}/a",
        "model",
        0,
        "note a",
    )
    assert (
        refused(HfHubHTTPError, ann.add_collection_item, made.slug, f"{ann.me}/a", "model").response.status_code == 409
    )
    assert len(ann.add_collection_item(made.slug, f"{ann.me}/a", "model", exists_ok=True).items) == 3
    for kind in ("dataset", "space", "paper"):
        error = refused(HfHubHTTPError, ann.add_collection_item, made.slug, "x/y", kind)
        assert f"a {kind} cannot be in a collection" in str(error)
    assert [i.item_id for i in bob.get_collection(made.slug).items] == [f"{ann.me}/a", f"{ann.me}/b"]
    refused(HfHubHTTPError, bob.add_collection_item, made.slug, f"{ann.me}/a", "model")

    first, _, last = held.items
    ann.update_collection_item(made.slug, last.item_object_id, position=0, note="first now")
    ann.delete_collection_item(made.slug, first.item_object_id)
    ann.delete_collection_item(made.slug, first.item_object_id, missing_ok=True)
    assert (
        refused(HfHubHTTPError, ann.delete_collection_item, made.slug, first.item_object_id).response.status_code == 404
    )
    present = ann.get_collection(made.slug).items
    assert [(i.item_id, i.position, i.note) for i in present] == [
        (f"{ann.me}/c", 0, "first now"),
        (f"{ann.me}/b", 1, "note b"),
    ]
    changed = ann.update_collection_metadata(made.slug, title="Other", description="new", theme="pink", position=2)
    assert (changed.title, changed.description, changed.theme, changed.position) == ("Other", "new", "pink", 2)
    assert changed.slug == f"{ann.me}/other-{made.slug.rpartition('-')[2]}"
    assert bob.get_collection(made.slug).slug == changed.slug

    more = [ann.create_collection(f"More {n}") for n in range(3)]
    listed = list(bob.list_collections(owner=ann.me))
    assert [one.slug for one in listed] == [*(one.slug for one in reversed(more)), changed.slug]
    assert [one.slug for one in bob.list_collections(owner=[ann.me], item=f"models/{ann.me}/b", limit=5)] == [
        changed.slug
    ]
    assert len(list(bob.list_collections(owner=ann.me, sort="trending", limit=2))) == 2
    assert list(bob.list_collections(owner=ann.me, item=f"models/{ann.me}/c")) == []

    ann.update_collection_metadata(changed.slug, private=True)
    assert refused(HfHubHTTPError, bob.get_collection, changed.slug).response.status_code == 404
    assert changed.slug not in [one.slug for one in bob.list_collections(owner=ann.me)]
    assert admin.get_collection(changed.slug).private
    ann.delete_collection(changed.slug)
    ann.delete_collection(changed.slug, missing_ok=True)
    assert refused(HfHubHTTPError, ann.get_collection, changed.slug).response.status_code == 404


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
