"""What becomes of a patch that holds NaN or infinity, or does not fit its base: refused, or kept and flagged.

The owner of the repository says which, else the service's own setting. A file of a patch is read through once, in the
commit that brings it; what is kept stands in the patch's detail, so that later commits need not read it again.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from sqlmodel import Session, col, select

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Account, Patch, Repository
from adapterhub.hub.errors import InvalidRequest, UnfitPatch
from adapterhub.hub.services import accounts, audit
from adapterhub.hub.services.access import Caller, require_member, require_settings
from adapterhub.merging import doubts, finiteness
from adapterhub.merging.checkpoint import Folder
from adapterhub.merging.patch import Facts, SiteTerm

WISHES = ("refuse", "flag")

NON_FINITE = "non_finite"
"""Key of a patch's detail: what was found by reading its values, sentences by file."""

TENSORS = 10
"""Most tensors of one file that are told of."""


@dataclass(frozen=True)
class Choice:
    """What an account chose, None for nothing, and what therefore happens."""

    account: str
    chosen: str | None
    effective: str


def choice(session: Session, hub: Hub, caller: Caller, account: str) -> Choice:
    """What becomes of unfit patches in that account. For its members. Raises AccountNotFound, Forbidden."""
    owner = accounts.find(session, account)
    require_member(session, caller, owner)
    return Choice(owner.name, owner.unfit_patches, owner.unfit_patches or hub.settings.unfit_patches)


def choose(session: Session, hub: Hub, caller: Caller, account: str, wish: str | None) -> Choice:
    """Have unfit patches refused or flagged in that account; None follows the service's setting.

    Raises InvalidRequest, AccountNotFound; Forbidden unless `caller` administers the account.
    """
    if wish is not None and wish not in WISHES:
        raise InvalidRequest(f"unfit_patches {wish!r}: one of {', '.join(WISHES)}, or null for the service's setting")
    owner = accounts.find(session, account)
    require_settings(session, caller, owner)
    before, owner.unfit_patches = owner.unfit_patches, wish
    session.add(owner)
    audit.record(session, caller, "account.unfit_patches", owner.id, owner.name, before=before, after=wish)
    return choice(session, hub, caller, account)


@dataclass(frozen=True)
class Judge:
    """How the patches of one commit are judged.

    refuses: whether one that is unfit is refused. reads_values: False where the bytes are not here. changed: paths that
    the commit brings. known: patches of the commit before, by folder.
    """

    owner: str
    refuses: bool
    reads_values: bool
    changed: Collection[str]
    known: Mapping[str, Patch]

    def flag(self, problem: str) -> str:
        """The problem, to be kept with its patch. Raises UnfitPatch where such patches are refused."""
        if not self.refuses:
            return problem
        raise UnfitPatch(
            f"{problem}. To keep such patches with a flag: `adapterhub account set {self.owner} --unfit-patches flag`"
        )

    def non_finite(self, folder: Folder, facts: Facts) -> Mapping[str, list[str]]:
        """A sentence for each tensor with NaN or infinity, by file. Raises UnfitPatch where that is refused.

        Full models are not read here: the job that takes their fingerprint does it.
        """
        before = self.known.get(facts.path)
        kept = before.detail.get(NON_FINITE, {}) if before is not None and before.kind == facts.kind else {}
        names = set(folder.names())
        found = {file: list(told) for file, told in kept.items() if file in names and file not in self.changed}
        if not self.reads_values or facts.kind == "model":
            return found
        for file in facts.files:
            told = [] if self._is_read(facts, file) else [self.flag(problem) for problem in non_finite(folder, file)]
            if told:
                found[file] = told
        return found

    def warnings(self, folder: Folder, facts: Facts, terms: Iterable[SiteTerm]) -> list[str]:
        """Warnings of the patch, those from its values among them; what was found before, where no file changed.

        Values are not looked at further where some are not finite.
        """
        if facts.files and all(self._is_read(facts, file) for file in facts.files):
            return list(self.known[facts.path].warnings)
        if not self.reads_values or NON_FINITE in facts.detail:
            return list(facts.warnings)
        return [*facts.warnings, *doubts.of_values(terms), *doubts.of_files(folder, facts.files)]

    def _is_read(self, facts: Facts, file: str) -> bool:
        """Whether the commit before had the file as part of the same patch, so that its values are known."""
        before = self.known.get(facts.path)
        return before is not None and before.kind == facts.kind and file not in self.changed


def judge(hub: Hub, repo: Repository, head: str, changed: Collection[str], *, reads_values: bool) -> Judge:
    """How a commit onto `head` of that repository is judged."""
    with hub.db.read() as session:
        owner = session.get(Account, repo.owner_id)
        at = col(Patch.repository_id) == repo.id, col(Patch.commit_oid) == head
        known = {row.path: row for row in session.scalars(select(Patch).where(*at))}
    wish = (owner.unfit_patches if owner else None) or hub.settings.unfit_patches
    return Judge(repo.full_name.partition("/")[0], wish == "refuse", reads_values, changed, known)


def non_finite(folder: Folder, file: str) -> list[str]:
    """A sentence for each of the first tensors of a file that hold NaN or infinity, and how many more do."""
    told: list[str] = []
    more = 0
    for problem in finiteness.problems(folder, [file]):
        if len(told) < TENSORS:
            told.append(problem)
        else:
            more += 1
    return [*told, f"{file}: {more} more tensors hold NaN or infinity"] if more else told
