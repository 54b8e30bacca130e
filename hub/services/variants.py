"""What `model` means: a repository, `base:patch` or an expression, as something an engine can serve."""

from typing import Any

from adapterhub.hub.context import Hub
from adapterhub.hub.errors import ModelNotFound, NotAuthenticated
from adapterhub.hub.services import mirror_inputs, search
from adapterhub.hub.services.access import Caller
from adapterhub.hub.services.resolve import MODEL, mapped, resolve_expression
from adapterhub.hub.serving.protocol import Source, VariantSpec
from adapterhub.merging.checkpoint import MappedFolder
from adapterhub.merging.errors import UnknownName
from adapterhub.merging.recipes.canonical import Input, base_of
from adapterhub.merging.recipes.expression import parse
from adapterhub.merging.recipes.nodes import Ref

LISTED = 1000
"""Most models in a listing."""


def served(hub: Hub, caller: Caller, model: str) -> VariantSpec:
    """The variant that `model` names for this caller, pinned to commits; nothing is merged here.

    Raises ModelNotFound for a name that is unknown or not for this caller, naming a near one; NotAuthenticated when
    somebody without a token asks for a merge of their own; NotFetched for a mirrored model that is not
    here yet; and as `resolve_expression`.
    """
    try:
        resolved = resolve_expression(hub, caller, model)
    except UnknownName as error:
        raise ModelNotFound(str(error)) from None
    if caller.is_anonymous and not isinstance(parse(model).root, Ref):
        raise NotAuthenticated(
            f"{model}: merging on request needs a token; without one, ask for a repository by its name"
        )
    mirror_inputs.require(hub, resolved.wanted)
    base = base_of(resolved.recipe, resolved.inputs)
    refs = (base, *(ref for ref in resolved.inputs if ref != base))
    sources = tuple(_source(ref, mapped(resolved.inputs[ref])) for ref in refs)
    return VariantSpec(resolved.digest, str(resolved.recipe), sources)


def _source(ref: Ref, one: Input) -> Source:
    assert isinstance(one.folder, MappedFolder)
    return Source(str(ref), one.name, one.kind, one.folder, one.path)


def models(hub: Hub, caller: Caller) -> list[dict[str, Any]]:
    """The catalogue lines of what this caller may serve by name: models, and patches whose base is on this hub."""
    with hub.db.read() as session:
        lines = search.search(session, caller, sort="updated", limit=LISTED)["items"]
    return [line for line in lines if line["kind"] == MODEL or (line["base"] or {}).get("repository")]


def model(hub: Hub, caller: Caller, name: str) -> dict[str, Any]:
    """The catalogue line of one of `models`. Raises ModelNotFound."""
    for line in models(hub, caller):
        if line["id"] == name:
            return line
    raise ModelNotFound(f"{name}: no model of that name is listed for you")
