"""From an expression's text to commits that the caller may read, and their files as the algebra takes them."""

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property

from sqlalchemy import select
from sqlmodel import Session, col

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Patch, Repository, RevisionFacts
from adapterhub.hub.errors import InvalidRequest, NotFetched, RepoNotFound
from adapterhub.hub.services import mirror, mirror_reading, recipe_texts, refs, repos
from adapterhub.hub.services.access import Caller, readable, require_content
from adapterhub.hub.services.inlining import Inlined, inlined
from adapterhub.hub.services.mirror_inputs import Wanted
from adapterhub.hub.services.recipe_texts import EXPRESSION
from adapterhub.merging.checkpoint import MappedFolder
from adapterhub.merging.errors import UnknownName
from adapterhub.merging.recipes.canonical import Input, canonical, recipe_digest
from adapterhub.merging.recipes.compositions import with_members
from adapterhub.merging.recipes.nodes import Composed, Node, Recipe, Ref, references_of, total

MODEL = "model"
FOLDERS_NAMED = 10
"""Most folders of a repository that a message names."""
NAMES_COMPARED = 5000
"""Most names among which a near one is looked for."""


@dataclass(frozen=True)
class Revision:
    """What a name was resolved to: one model or patch of one commit. licence: as its card declares, None without.
    has_weights: as of an Input."""

    repo: Repository
    commit: str
    path: str
    kind: str
    licence: str | None
    patch: Patch
    has_weights: bool = True

    @property
    def wanted(self) -> Wanted:
        """What is read of it."""
        return Wanted(self.repo, self.commit, self.path)

    @property
    def name(self) -> str:
        """ "ns/name@<commit>", which names these bytes for good."""
        return f"{self.repo.full_name}@{self.commit}"


@dataclass(frozen=True)
class Resolved:
    """A recipe with every name pinned to a commit. Its base is named even where the text left it to the patches.

    inlined: the saved recipes that stood in the text, which are written out in `recipe`.
    """

    recipe: Recipe
    inputs: Mapping[Ref, Input]
    revisions: Mapping[Ref, Revision]
    inlined: Inlined

    @property
    def pins(self) -> dict[str, str]:
        """The commit of each name, by the name as the recipe has it, and the version of each saved recipe."""
        return {ref.address: revision.commit for ref, revision in self.revisions.items()} | dict(self.inlined.pins)

    @property
    def wanted(self) -> list[Wanted]:
        """What is read of all inputs."""
        return [revision.wanted for revision in self.revisions.values()]

    @cached_property
    def canonical(self) -> str:
        """The canonical recipe of the model that it means; reads configurations and headers."""
        return canonical(self.recipe, self.inputs)

    @property
    def digest(self) -> str:
        """The recipe digest of the model that it means."""
        return recipe_digest(self.canonical)


def resolve_expression(
    hub: Hub, caller: Caller, text: str, pins: Mapping[str, str] | None = None, *, syntax: str = EXPRESSION
) -> Resolved:
    """The recipe of `text` and what its names mean now, or meant when `pins` were taken.

    Saved recipes in it are written out, as `inlining` says. syntax: what the text is written in.

    Patches alone stand for the one base on this hub that all were trained on, plus each of them. Raises
    ExpressionError, RecipeFileError, RecipeTooLarge; UnknownName for a repository that is not there or not for this
    caller, naming a near one; GatedRepo; RevisionNotFound; InvalidRequest where a repository holds no or several
    patches, or the bases differ; as `inlining.inlined`; as `mirror.ensure` for what another hub may have.
    """
    with hub.db.read() as session:
        written = inlined(session, caller, recipe_texts.read(text, syntax), pins or {})
    return _resolved(hub, caller, written, pins or {})


def resolve_recipe(hub: Hub, caller: Caller, recipe: Recipe) -> Resolved:
    """What the names of a recipe without saved recipes mean now. Raises as `resolve_expression`."""
    return _resolved(hub, caller, Inlined(recipe), {})


def _resolved(hub: Hub, caller: Caller, written: Inlined, pins: Mapping[str, str]) -> Resolved:
    recipe = written.recipe
    for ref in recipe.references():
        look_up(hub, caller, ref, pins.get(ref.address))
    with hub.db.read() as session:
        elsewhere = hub.settings.served_elsewhere
        found = {ref: find(session, caller, ref, pins.get(ref.address), elsewhere) for ref in recipe.references()}
        bases: dict[Ref, Revision] = {}

        def on_base(node: Node) -> Node:
            """A sum that names no full model, on the base that its patches were trained on."""
            named = {ref: found[ref] for ref in references_of(node)}
            if any(revision.kind == MODEL for revision in named.values()):
                return node
            base = _common_base(session, caller, named)
            base_ref = Ref(base.repo.full_name, base.commit, base.path)
            bases[base_ref] = base
            return total([base_ref, node])

        root = recipe.root
        recipe = replace(recipe, root=with_members(root, on_base) if isinstance(root, Composed) else on_base(root))
        found = {**bases, **found}
        inputs = {ref: as_input(session, hub, revision) for ref, revision in found.items()}
    return Resolved(recipe, inputs, found, written)


def look_up(hub: Hub, caller: Caller, ref: Ref, commit: str | None = None) -> None:
    """Have what a name means here, if another hub has it; commit: in place of its revision. Raises as `mirror.ensure`.

    A name that is unknown there too is left to `find`.
    """
    with suppress(RepoNotFound):
        mirror.ensure(hub, caller, ref.name, commit or ref.revision)


def find(
    session: Session, caller: Caller, ref: Ref, commit: str | None = None, elsewhere: Collection[str] = ()
) -> Revision:
    """What one name means; commit: in place of its revision. Raises as `resolve_expression`.

    elsewhere: repositories whose models another server computes; they need not hold weights.
    """
    try:
        repo = repos.find(session, caller, ref.name)
    except RepoNotFound:
        raise UnknownName(_unknown(session, caller, ref)) from None
    require_content(session, caller, repo)
    oid = refs.resolve(session, repo, commit or ref.revision)
    has_weights = True
    try:
        patch = _patch_at(session, repo, oid, ref)
    except InvalidRequest:
        if ref.path or repo.full_name not in elsewhere:
            raise
        patch, has_weights = Patch(repository_id=repo.id, commit_oid=oid, kind=MODEL), False  # never added
    facts = session.get(RevisionFacts, (repo.id, oid))
    licence = patch.licence or (facts.licence if facts else None)
    return Revision(repo, oid, patch.path, patch.kind, licence, patch, has_weights)


def as_input(session: Session, hub: Hub, revision: Revision) -> Input:
    """The revision as the algebra takes it: its files read lazily from the store."""
    folder = mirror_reading.folder(session, hub, revision.repo, revision.commit)
    declared = revision.patch.base_quantisation
    return Input(revision.name, folder, revision.path, revision.kind, declared, revision.licence, revision.has_weights)


def mapped(one: Input) -> Input:
    """The same input with its files as plain paths of this machine, fit to be sent to another process.

    Files of a mirror that are not here are left out: `mirror_inputs.require` says which must be.
    """
    folder, files = one.folder, {}
    for name in folder.names():
        with suppress(NotFetched):
            files[name] = folder.path(name), folder.digest(name), folder.size(name)
    return replace(one, folder=MappedFolder(files))


def _patch_at(session: Session, repo: Repository, commit: str, ref: Ref) -> Patch:
    here = select(Patch).where(col(Patch.repository_id) == repo.id, col(Patch.commit_oid) == commit)
    found = session.scalars(here.where(col(Patch.path) == ref.path)).first()
    if found is not None:
        return found
    rows = session.scalars(here.order_by(col(Patch.path)).limit(FOLDERS_NAMED)).all()
    if len(rows) == 1 and not ref.path:
        return rows[0]
    if not rows:
        raise InvalidRequest(f"{ref.address}: holds no model and no patch that is known here")
    paths = here.with_only_columns(col(Patch.path)).limit(NAMES_COMPARED)
    near = get_close_matches(ref.path, session.scalars(paths).all(), 1) if ref.path else []
    folders = ", ".join(f"{ref.name}/{path}" if path else ref.name for path in near or [row.path for row in rows])
    raise InvalidRequest(f"{ref.address}: no patch lies there; name one of {folders}")


def _common_base(session: Session, caller: Caller, found: Mapping[Ref, Revision]) -> Revision:
    named = {(one.patch.base_repository_id, one.patch.base_commit) for one in found.values()}
    if len(named) > 1:
        raise InvalidRequest("the patches were trained on different bases; begin the expression with the one to use")
    [(repository_id, commit)] = named
    readable_one = (col(Repository.id) == repository_id, readable(caller))
    repo = session.scalars(select(Repository).where(*readable_one)).first()
    if repo is None or commit is None:
        name = next(iter(found.values())).patch.base_name or "the base"
        raise InvalidRequest(f"{name} is not on this hub; begin the expression with a full model")
    return find(session, caller, Ref(repo.full_name, commit))


def _unknown(session: Session, caller: Caller, ref: Ref) -> str:
    names = session.scalars(select(col(Repository.full_name)).where(readable(caller)).limit(NAMES_COMPARED)).all()
    near = get_close_matches(ref.name, names, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{ref.name}: no such repository, or it is private and your token may not see it{hint}"
