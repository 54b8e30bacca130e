"""What `model` means: a repository, `base:patch` or an expression, as something an engine can serve."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from sqlmodel import Session

from adapterhub.hub.context import Hub
from adapterhub.hub.errors import InvalidRequest, ModelNotFound, NotAuthenticated, RecipeNotFound, RepoNotFound
from adapterhub.hub.services import mirror_inputs, recipe_views, recipes, repos, saved_recipes, search
from adapterhub.hub.services.access import Caller
from adapterhub.hub.services.resolve import MODEL, Resolved, mapped, resolve_expression, resolve_recipe
from adapterhub.hub.serving.protocol import Composition, Endpoint, Source, VariantSpec
from adapterhub.hub.settings import Elsewhere
from adapterhub.merging.checkpoint import MappedFolder
from adapterhub.merging.errors import UnknownName
from adapterhub.merging.recipes.canonical import Input, base_of, canonical, input_digest, recipe_digest
from adapterhub.merging.recipes.compositions import composition_of
from adapterhub.merging.recipes.expression import parse
from adapterhub.merging.recipes.nodes import Composed, Recipe, Ref
from adapterhub.merging.recipes.rebuilding import rebuilt
from adapterhub.merging.recipes.values import parameters_json

VID = "vid:"
"""How a model's name begins that is a recipe's digest."""

LISTED = 1000
"""Most models in a listing."""


def served(hub: Hub, caller: Caller, model: str) -> VariantSpec:
    """The variant that `model` names for this caller, pinned to commits; nothing is merged here.

    "vid:sha256-<hex>" is a recipe that was served or merged before, by its digest; each that a token asks for is
    remembered. Raises ModelNotFound for a name that is unknown or not for this caller, naming a near one;
    NotAuthenticated when somebody without a token asks for a merge of their own; NotFetched for a mirrored model that
    is not here yet; and as `resolve_expression`.
    """
    try:
        resolved = _kept(hub, caller, model) if model.startswith(VID) else resolve_expression(hub, caller, model)
    except (RecipeNotFound, UnknownName) as error:
        raise ModelNotFound(str(error)) from None
    if caller.is_anonymous and (model.startswith(VID) or not isinstance(parse(model).root, Ref)):
        raise NotAuthenticated(
            f"{model}: merging on request needs a token; without one, ask for a repository by its name"
        )
    mirror_inputs.require(hub, resolved.wanted)
    if not caller.is_anonymous:
        recipes.keep_served(hub, caller, resolved.canonical, partial(str, resolved.recipe))
    if not isinstance(resolved.recipe.root, Composed):
        return _spec(resolved.recipe, resolved.inputs, resolved.digest)
    return _composed(resolved, hub.settings.served_elsewhere)


def _spec(recipe: Recipe, inputs: Mapping[Ref, Input], digest: str) -> VariantSpec:
    base = base_of(recipe, inputs)
    refs = (base, *(ref for ref in inputs if ref != base))
    return VariantSpec(digest, str(recipe), tuple(_source(ref, mapped(inputs[ref])) for ref in refs))


def _composed(resolved: Resolved, elsewhere: Mapping[str, Elsewhere]) -> VariantSpec:
    """Each member is a variant of its own digest, which others that are served share in memory.

    elsewhere: by repository, who computes a member that is that model alone.
    """
    composition = composition_of(resolved.recipe)
    digests = {ref: input_digest(one) for ref, one in resolved.inputs.items()}
    members = []
    for member in composition.members:
        inputs = {ref: resolved.inputs[ref] for ref in member.recipe.references()}
        known = {ref: digests[ref] for ref in inputs}
        spec = _spec(member.recipe, inputs, recipe_digest(canonical(member.recipe, inputs, digests=known)))
        there = elsewhere.get(spec.expression.partition("@")[0])
        members.append(spec if there is None else replace(spec, endpoint=_endpoint(there)))
    told = Composition(
        composition.spec.name, parameters_json(composition.parameters), composition.weights, tuple(members)
    )
    return VariantSpec(resolved.digest, str(resolved.recipe), members[0].sources, told)


def _endpoint(there: Elsewhere) -> Endpoint:
    key = None if there.api_key is None else there.api_key.get_secret_value()
    return Endpoint(there.url, there.model, key, there.logprobs)


def _kept(hub: Hub, caller: Caller, model: str) -> Resolved:
    """What a digest stands for. Raises RecipeNotFound, InvalidRequest for what is served as a repository alone."""
    kept = recipes.show(hub, caller, model.removeprefix(VID).replace("-", ":", 1))
    found = rebuilt(json.dumps(kept["canonical"]).encode())
    if found.as_kind is not None or found.dtype is not None:
        raise InvalidRequest(
            f"{model}: its result is {found.as_kind or found.dtype}; merge it and serve the repository"
        )
    return resolve_recipe(hub, caller, found.recipe)


def _source(ref: Ref, one: Input) -> Source:
    assert isinstance(one.folder, MappedFolder)
    return Source(str(ref), one.name, one.kind, one.folder, one.path)


@dataclass(frozen=True)
class Listed:
    """What may be served under a name of its own. kind: "model", a patch kind, or "recipe"; base: its repository.

    held_as: what an engine calls it where it is in memory, by commits or by digest.
    """

    name: str
    owner: str
    kind: str
    created_at: str
    base: str | None
    held_as: str


def models(hub: Hub, caller: Caller) -> list[Listed]:
    """What this caller may serve by name: models, patches whose base is on this hub, and saved recipes."""
    with hub.db.read() as session:
        lines = search.search(session, caller, sort="updated", limit=LISTED)["items"]
    return [*_listed_of(lines, lines), *_recipes(recipe_views.listing(hub, caller, limit=LISTED)["items"])]


def model(hub: Hub, caller: Caller, name: str) -> Listed:
    """One that could be among `models`, however many there are. Raises ModelNotFound."""
    if name.startswith(saved_recipes.PREFIX):
        owner, _, title = name.removeprefix(saved_recipes.PREFIX).partition("/")
        named = recipe_views.listing(hub, caller, query=title, author=owner, limit=LISTED)["items"]
        found = _recipes(named)
    else:
        with hub.db.read() as session:
            lines = _lines(session, caller, name)
            bases = [(line["base"] or {}).get("repository") for line in lines]
            known = [one for base in bases if base for one in _lines(session, caller, base)]
            found = _listed_of(lines, [*lines, *known])
    for one in found:
        if one.name == name:
            return one
    raise ModelNotFound(f"{name}: no model of that name is listed for you")


def _lines(session: Session, caller: Caller, name: str) -> list[dict[str, Any]]:
    """What the catalogue says of a repository, nothing where it is not for this caller."""
    with suppress(RepoNotFound):
        return search.lines(session, caller, [repos.find(session, caller, name).id])
    return []


def _listed_of(lines: Sequence[Mapping[str, Any]], known: Sequence[Mapping[str, Any]]) -> list[Listed]:
    """known: lines of the bases, as far as they are at hand."""
    commits = {line["id"]: line["commit"] for line in known}
    return [_listed(line, commits) for line in lines if line["kind"] == MODEL or (line["base"] or {}).get("repository")]


def _recipes(items: Sequence[Mapping[str, Any]]) -> list[Listed]:
    return [_listed_recipe(one) for one in items if one["text"] is not None]


def _listed(line: Mapping[str, Any], commits: Mapping[str, str]) -> Listed:
    name, base = line["id"], (line["base"] or {}).get("repository")
    base = None if line["kind"] == MODEL else base
    pinned = f"{name}@{line['commit']}"
    held_as = pinned if base is None else f"{base}@{commits.get(base)} + {pinned}"
    return Listed(name, name.partition("/")[0], line["kind"], line["created_at"], base, held_as)


def _listed_recipe(one: Mapping[str, Any]) -> Listed:
    return Listed(one["name"], one["id"].partition("/")[0], "recipe", one["created_at"], None, one["digest"])
