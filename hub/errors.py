"""Errors of the service; `api/errors.py` says what each becomes on the wire.

HubError
├── Refused               the caller may not do that
│   ├── NotAuthenticated  no token, and one is needed
│   ├── InvalidToken      a token that is unknown, expired or revoked
│   ├── Forbidden         a known caller without the right
│   ├── GatedRepo         a repository whose owner wants to be asked first
│   │   └── GatedAnonymous    and nobody said who asks
│   └── DisabledRepo      a repository that an administrator closed
├── NotFound              the thing does not exist, or not for this caller
│   ├── RepoNotFound  RevisionNotFound  EntryNotFound  AccountNotFound
│   │   └── OtherRepoType a dataset, space or the like, none of which is kept here
│   ├── JobNotFound   RecipeNotFound    AliasNotFound  ModelNotFound   UploadNotFound
│   └── TokenNotFound  AccessRequestNotFound  CollectionNotFound  ItemNotFound  WebhookNotFound
│       DiscussionNotFound  PatchNotFound
├── Conflict              the thing exists already or moved meanwhile
│   ├── RepoExists  RefExists  AccountExists  NameReserved  CollectionExists  ItemExists
│   ├── RecipeExists
│   ├── MergeConflict     a pull request that changes what changed on the branch meanwhile
│   ├── HeadMoved         the branch is no longer where the caller thinks
│   ├── LeaseLost         a worker whose job was given to another
│   └── OffsetMismatch    a resumed upload that does not start where the last one ended
├── Invalid               the request does not hold together
│   ├── InvalidName  InvalidPath  InvalidCommit  InvalidRange  InvalidCard  InvalidRequest
│   ├── UnsupportedRepoType  NotOffered
│   ├── SealBroken        something kept encrypted that the present secret does not open
│   ├── OutboundRefused   an address of another machine that this service must not reach
│   └── UnfitPatch        the patch does not fit the base, or contradicts itself
├── TooLarge              more bytes, files or characters than the limit
└── Unavailable           trying again later may help
    ├── EngineUnavailable the engine process is down or restarting
    ├── NotFetched        bytes of a mirror that are still at the other hub, and on their way
    ├── Overloaded        queues are full
    ├── DatabaseBusy      the database stayed locked
    └── OutboundFailed    another machine did not answer, or not well
        └── WrongUpstream another hub contradicts itself
"""

import re

from adapterhub.errors import AdapterHubError


def code_of(error: AdapterHubError) -> str:
    """The error's name in snake_case, as problem+json and jobs show it: RepoNotFound is "repo_not_found"."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(error).__name__).lower()


class HubError(AdapterHubError):
    """Anything the service refuses or cannot do."""


class Refused(HubError):
    """The caller may not do that."""


class NotAuthenticated(Refused):
    """No token was sent, and one is needed."""


class InvalidToken(Refused):
    """The token is unknown, expired or revoked."""


class Forbidden(Refused):
    """The caller is known and lacks the right."""


class GatedRepo(Refused):
    """The owner of the repository wants to be asked before its files are read."""

    def __init__(self, repo_id: str, hint: str) -> None:
        super().__init__(f"{repo_id}: its files are gated; {hint}")


class GatedAnonymous(GatedRepo):
    """The repository is gated and no token was sent; clients are told the code GatedRepo."""

    def __init__(self, repo_id: str) -> None:
        super().__init__(repo_id, f"log in, and ask to be let in on its page, /{repo_id}")


class DisabledRepo(Refused):
    """An administrator closed the repository; nobody else sees anything of it."""

    def __init__(self, repo_id: str, reason: str = "") -> None:
        super().__init__(f"{repo_id}: an administrator disabled it" + (f": {reason}" if reason else ""))


class NotFound(HubError):
    """The thing does not exist, or not for this caller: the two look the same."""


class RepoNotFound(NotFound):
    def __init__(
        self, repo_id: str, reason: str = "no such repository, or it is private and your token may not see it"
    ) -> None:
        super().__init__(f"{repo_id}: {reason}")
        self.repo_id = repo_id


class OtherRepoType(RepoNotFound):
    """A dataset, space or the like that a client wants to read. reason: why there are none here."""

    def __init__(self, repo_id: str, reason: str) -> None:
        super().__init__(repo_id, reason)
        self.reason = reason


class RevisionNotFound(NotFound):
    def __init__(self, repo_id: str, revision: str) -> None:
        super().__init__(f"{repo_id}: no branch, tag or commit {revision!r}")
        self.repo_id = repo_id
        self.revision = revision


class EntryNotFound(NotFound):
    """commit: the 40-hex commit that was looked into; clients remember the absence under it."""

    def __init__(self, repo_id: str, path: str, commit: str) -> None:
        super().__init__(f"{repo_id}: no file {path!r} at commit {commit[:12]}")
        self.repo_id = repo_id
        self.path = path
        self.commit = commit


class PatchNotFound(NotFound):
    """The repository is there, and holds no patch and no model in that folder."""

    def __init__(self, repo_id: str, path: str) -> None:
        super().__init__(f"{repo_id}: no patch and no model lies in the folder {path[:200]!r}")


class AccountNotFound(NotFound):
    """No user or organisation of that name."""


class JobNotFound(NotFound):
    """No job of that id, or it is somebody else's."""


class RecipeNotFound(NotFound):
    """No recipe of that digest, or none of that name."""


class AliasNotFound(NotFound):
    """No alias of that name."""


class ModelNotFound(NotFound):
    """`model` names nothing that can be served; the text names near ones."""


class DiscussionNotFound(NotFound):
    """No discussion or pull request of that number, or no such comment in it."""


class WebhookNotFound(NotFound):
    """No webhook of that id, or no delivery, of this caller."""


class UploadNotFound(NotFound):
    """No unfinished upload of that file by this caller."""


class TokenNotFound(NotFound):
    """No token of that id or name, or it is somebody else's, or it ended already."""


class AccessRequestNotFound(NotFound):
    """Nobody of that name or id asked for the files, or the request has that status already."""


class CollectionNotFound(NotFound):
    def __init__(self, slug: str) -> None:
        super().__init__(f"{slug}: no such collection, or it is private and your token may not see it")


class ItemNotFound(NotFound):
    """The collection has no item of that id."""


class Conflict(HubError):
    """The thing exists already, or moved meanwhile."""


class RepoExists(Conflict):
    def __init__(self, repo_id: str) -> None:
        super().__init__(f"{repo_id}: a repository of that name exists already")
        self.repo_id = repo_id


class RefExists(Conflict):
    """A branch or tag of that name exists already."""


class AccountExists(Conflict):
    """A user or organisation of that name, or of one that looks like it, exists already."""


class CollectionExists(Conflict):
    def __init__(self, title: str, slug: str) -> None:
        super().__init__(f"{title!r}: the collection {slug} has that title already")
        self.slug = slug


class RecipeExists(Conflict):
    """Another saved recipe has that name."""


class ItemExists(Conflict):
    """The collection holds that repository already."""


class NameReserved(Conflict):
    """The name belongs to a page or route of the service."""


class HeadMoved(Conflict):
    """The branch is no longer at the commit the caller named."""


class MergeConflict(Conflict):
    """A pull request changes files that changed on the branch meanwhile. paths: those files."""

    def __init__(self, message: str, paths: list[str]) -> None:
        super().__init__(message)
        self.paths = paths


class LeaseLost(Conflict):
    """The job is no longer this worker's: its lease ran out, or it ended. What it made must not be published."""

    def __init__(self, job_id: str, fence: int) -> None:
        super().__init__(f"job {job_id}: lease {fence} is no longer the newest; stop working on it")
        self.job_id = job_id
        self.fence = fence


class OffsetMismatch(Conflict):
    """A resumed upload must start at `expected`, the number of bytes that arrived."""

    def __init__(self, path: str, expected: int, found: int) -> None:
        super().__init__(f"{path}: upload stands at byte {expected}, this part starts at {found}; send from {expected}")
        self.expected = expected


class Invalid(HubError):
    """The request does not hold together."""


class InvalidName(Invalid):
    """A name of a repository, account, branch or tag that is not allowed."""


class InvalidPath(Invalid):
    """A path that leaves the repository or could be read in two ways."""


class InvalidCommit(Invalid):
    """A commit whose operations contradict each other or name bytes that are not here."""


class InvalidRange(Invalid):
    """A byte range that lies outside the file. size_bytes: the file's size."""

    def __init__(self, text: str, size_bytes: int) -> None:
        super().__init__(f"range {text!r} lies outside the {size_bytes} bytes of the file")
        self.size_bytes = size_bytes


class InvalidCard(Invalid):
    """A card (README.md) whose front matter does not parse."""


class InvalidRequest(Invalid):
    """A field that is missing, of the wrong type, or out of range."""


class UnsupportedRepoType(Invalid):
    """Only model repositories live here."""


class NotOffered(Invalid):
    """Something that clients of the Hugging Face Hub can ask for and this hub does not have."""


class SealBroken(Invalid):
    """Something kept encrypted was sealed under another ADAPTERHUB_SECRET; enter it again."""


class OutboundRefused(Invalid):
    """An address that this service must not reach: no http, a password in it, or no public machine."""


class UnfitPatch(Invalid):
    """The patch does not fit the base it is asked onto, or contradicts itself."""


class PickleRefused(Invalid):
    """A pickle in a commit, on a hub that takes none."""


class TooLarge(HubError):
    """More bytes, files or characters than the limit."""


class Unavailable(HubError):
    """Trying again later may help. retry_after_s: a hint in seconds."""

    def __init__(self, message: str, retry_after_s: int = 5) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineUnavailable(Unavailable):
    """The engine process is down or restarting."""


class NotFetched(Unavailable):
    """Bytes of a mirrored repository that are still at the other hub; a job brings them."""


class Overloaded(Unavailable):
    """Queues are full."""


class DatabaseBusy(Unavailable):
    """The database stayed locked past the patience of the one write helper."""


class OutboundFailed(Unavailable):
    """Another machine did not answer, or not as it should."""


class WrongUpstream(OutboundFailed):
    """Another hub sends other bytes than it names, or an answer that does not hold together; nothing is kept."""
