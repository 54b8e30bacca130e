"""Every table of the service, one class a table.

Conventions: ids are uuid4 hex; times are UTC with zone, in microseconds where the database keeps them; digests are
"sha256:<hex>"; oids are 40 hex of git objects; JSON columns hold plain values. Rows that name a file of a repository
carry the repository's id, so that no lookup by hash alone can cross repositories. Schema changes are made by a
migration and mirrored here; `tests/hub/db/test_migrations.py` compares the two.
"""

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from sqlalchemy import JSON, BigInteger, Column, DateTime, ForeignKeyConstraint, Index, Text, UniqueConstraint, text
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field, SQLModel


def new_id() -> str:
    """A fresh uuid4 in hexadecimal."""
    return uuid4().hex


def now() -> datetime:
    """The present time in UTC."""
    return datetime.now(UTC)


class UtcDateTime(TypeDecorator[datetime]):
    """Datetimes that come back in UTC with their zone, from SQLite too, which forgets it."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        """`value` with UTC as its zone when the database gave none."""
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


def _time(**column: Any) -> Any:
    return Field(default_factory=now, sa_type=UtcDateTime, **column)


def _optional_time(*, index: bool = False) -> Any:
    return Field(default=None, sa_type=UtcDateTime, nullable=True, index=index)


def _json(default: type) -> Any:
    return Field(default_factory=default, sa_column=Column(JSON, nullable=False))


class Account(SQLModel, table=True):
    """A user or an organisation: both own repositories, so both stand in one table and share one set of names.

    name_key is the name case-folded with "-", "_" and "." removed: no two accounts may look alike.
    """

    __tablename__ = "account"
    id: str = Field(default_factory=new_id, primary_key=True)
    kind: str = Field(description="user or organisation")
    name: str = Field(unique=True)
    name_key: str = Field(unique=True)
    fullname: str = ""
    email: str = ""
    is_admin: bool = False
    created_at: datetime = _time()
    disabled_at: datetime | None = _optional_time()
    unfit_patches: str | None = Field(default=None, description="refuse or flag; null as the service's setting says")


class Membership(SQLModel, table=True):
    """A user's role in an organisation: admin, write, contributor or read."""

    __tablename__ = "membership"
    organisation_id: str = Field(foreign_key="account.id", primary_key=True)
    user_id: str = Field(foreign_key="account.id", primary_key=True, index=True)
    role: str


class Token(SQLModel, table=True):
    """An access token, known only by the SHA-256 of its 256 random bits."""

    __tablename__ = "token"
    id: str = Field(default_factory=new_id, primary_key=True)
    account_id: str = Field(foreign_key="account.id", index=True)
    name: str
    role: str = Field(description="read, write, admin or fine-grained")
    reads_gated: bool = False
    """Whether a fine-grained token opens the gated public repositories that its account may open."""
    token_sha256: str = Field(unique=True)
    created_at: datetime = _time()
    last_used_at: datetime | None = _optional_time()
    expires_at: datetime | None = _optional_time()
    revoked_at: datetime | None = _optional_time()


class Repository(SQLModel, table=True):
    """A repository; its id never changes, its name may. A deleted one stays as a tombstone of its name."""

    __tablename__ = "repository"
    id: str = Field(default_factory=new_id, primary_key=True)
    owner_id: str = Field(foreign_key="account.id", index=True)
    full_name: str = Field(description="ns/name as its owner spells it")
    name_key: str | None = Field(unique=True, description="full name case-folded; null once deleted")
    is_private: bool = False
    gated: str | None = Field(default=None, description="auto, manual, or null")
    default_branch: str = "main"
    downloads: int = 0
    likes: int = 0
    creator_id: str | None = Field(default=None, description="the account that made it; null where nobody knows")
    created_at: datetime = _time()
    updated_at: datetime = _time(index=True)
    disabled_at: datetime | None = _optional_time()
    disabled_reason: str = ""
    deleted_at: datetime | None = _optional_time()


class RepositoryName(SQLModel, table=True):
    """A name that a repository has or had; old names redirect and are never given to another repository."""

    __tablename__ = "repository_name"
    name_key: str = Field(primary_key=True)
    full_name: str
    repository_id: str = Field(foreign_key="repository.id", index=True)
    since: datetime = _time()


class RepositoryTag(SQLModel, table=True):
    """A tag of the default branch's head, as `RevisionFacts.tags` has it: the index that lists filter by."""

    __tablename__ = "repository_tag"
    repository_id: str = Field(foreign_key="repository.id", primary_key=True)
    tag: str = Field(primary_key=True, index=True)


class Blob(SQLModel, table=True):
    """Bytes that rest in the store. Written only after the bytes are durable."""

    __tablename__ = "blob"
    digest: str = Field(primary_key=True)
    size_bytes: int = Field(sa_type=BigInteger)
    codec: str = "raw"
    created_at: datetime = _time()


class BlobOwner(SQLModel, table=True):
    """The right of a repository to a blob: reading or linking a digest asks for this row, not for the blob's alone."""

    __tablename__ = "blob_owner"
    repository_id: str = Field(foreign_key="repository.id", primary_key=True)
    digest: str = Field(foreign_key="blob.digest", primary_key=True, index=True)
    linked_at: datetime = _time()


class GitBlob(SQLModel, table=True):
    """A git blob object of a repository: the file itself, or (is_lfs) the pointer to a large file.

    oid is git's SHA-1 of what git would store; digest and size_bytes are of the file that the client sees.
    """

    __tablename__ = "git_blob"
    repository_id: str = Field(foreign_key="repository.id", primary_key=True)
    oid: str = Field(primary_key=True)
    digest: str = Field(foreign_key="blob.digest", index=True)
    size_bytes: int = Field(sa_type=BigInteger)
    is_lfs: bool


class GitTreeEntry(SQLModel, table=True):
    """One line of a git tree object; mode "40000" is a folder, "100644" a file."""

    __tablename__ = "git_tree_entry"
    repository_id: str = Field(foreign_key="repository.id", primary_key=True)
    tree_oid: str = Field(primary_key=True)
    name: str = Field(primary_key=True)
    mode: str
    oid: str


class Commit(SQLModel, table=True):
    """A git commit object. Immutable; its oid is the SHA-1 of exactly these fields."""

    __tablename__ = "commit"
    repository_id: str = Field(foreign_key="repository.id", primary_key=True)
    oid: str = Field(primary_key=True)
    tree_oid: str
    parents: list[str] = _json(list)
    author_name: str
    author_email: str
    message: str = Field(sa_type=Text)
    committed_at: datetime = _time()
    author_id: str | None = Field(default=None, foreign_key="account.id")


class Ref(SQLModel, table=True):
    """A branch ("refs/heads/main"), tag ("refs/tags/v1") or other ref; moved only by compare-and-set on target_oid."""

    __tablename__ = "ref"
    repository_id: str = Field(foreign_key="repository.id", primary_key=True)
    name: str = Field(primary_key=True)
    target_oid: str
    message: str = ""
    updated_at: datetime = _time()


class RevisionFacts(SQLModel, table=True):
    """What ingest learnt of one commit as a whole.

    kind: of the patch or model at the root, "patches" when all lie in sub-folders, else "unknown". card: the parsed
    front matter. tags: as the Hugging Face API shows them, derived ones included. fingerprint: of a full model, filled
    by a job. base_models: [{"name", "relation"}] as declared.
    """

    __tablename__ = "revision_facts"
    repository_id: str = Field(primary_key=True)
    commit_oid: str = Field(primary_key=True)
    kind: str = Field(index=True)
    reason: str = ""
    card: dict[str, Any] = _json(dict)
    tags: list[str] = _json(list)
    library: str | None = None
    pipeline_tag: str | None = Field(default=None, index=True)
    licence: str | None = Field(default=None, index=True)
    base_models: list[dict[str, Any]] = _json(list)
    parameters: dict[str, int] = _json(dict)
    """Numbers stored in safetensors by dtype."""
    size_bytes: int = Field(default=0, sa_type=BigInteger)
    fingerprint: str | None = Field(default=None, index=True)
    config: dict[str, Any] = _json(dict)
    parameter_count: int = Field(default=0, sa_type=BigInteger)
    """The sum of `parameters`, which lists are filtered by."""
    __table_args__ = (ForeignKeyConstraint(["repository_id", "commit_oid"], ["commit.repository_id", "commit.oid"]),)


class Patch(SQLModel, table=True):
    """One patch of one commit: a repository may hold many, in sub-folders."""

    __tablename__ = "patch"
    id: str = Field(default_factory=new_id, primary_key=True)
    repository_id: str
    commit_oid: str
    path: str = Field(default="", description="folder inside the repository, '' for the root")
    kind: str = Field(index=True)
    reason: str = ""
    effect: str = "additive"
    digest: str | None = Field(default=None, index=True)
    base_name: str | None = Field(default=None, index=True, description="as declared")
    base_repository_id: str | None = Field(default=None, foreign_key="repository.id", index=True)
    base_commit: str | None = None
    base_fingerprint: str | None = Field(default=None, index=True)
    base_quantisation: str = "unknown"
    rank_min: int | None = None
    rank_max: int | None = None
    targets: list[str] = _json(list)
    layers: dict[str, int] = _json(dict)
    parameter_count: int = Field(default=0, sa_type=BigInteger)
    dtypes: dict[str, int] = _json(dict)
    size_bytes: int = Field(default=0, sa_type=BigInteger)
    licence: str | None = None
    training_method: str | None = None
    datasets: list[str] = _json(list)
    tasks: list[str] = _json(list)
    languages: list[str] = _json(list)
    detail: dict[str, Any] = _json(dict)
    contract: dict[str, Any] = _json(dict)
    training: dict[str, Any] = _json(dict)
    parts: list[str] = _json(list)
    problems: list[str] = _json(list)
    warnings: list[str] = _json(list)
    created_at: datetime = _time()
    __table_args__ = (
        ForeignKeyConstraint(["repository_id", "commit_oid"], ["commit.repository_id", "commit.oid"]),
        UniqueConstraint("repository_id", "commit_oid", "path"),
    )


class LineageEdge(SQLModel, table=True):
    """The child was made from the parent. Pinned to commits and digests, so a rename changes nothing.

    relation: adapter, finetune, merge, ported, quantized, copy. evidence: declared, recipe, fingerprint.
    parent_repository_id is null where the parent is not on this hub; parent_name is as declared.
    """

    __tablename__ = "lineage_edge"
    id: str = Field(default_factory=new_id, primary_key=True)
    child_repository_id: str = Field(foreign_key="repository.id", index=True)
    child_commit: str
    child_digest: str | None = None
    parent_repository_id: str | None = Field(default=None, foreign_key="repository.id", index=True)
    parent_name: str
    parent_commit: str | None = None
    parent_digest: str | None = None
    relation: str
    evidence: str
    weight: float | None = None
    created_at: datetime = _time()


class Recipe(SQLModel, table=True):
    """A recipe in canonical form, named by its digest; text is what the user wrote.

    served_at: when it was last asked for, to the day, where that is the only reason to know it; null for one that is
    kept for good.
    """

    __tablename__ = "recipe"
    digest: str = Field(primary_key=True)
    canonical: str = Field(sa_type=Text)
    text: str = Field(sa_type=Text)
    created_by: str | None = Field(default=None, foreign_key="account.id")
    created_at: datetime = _time()
    served_at: datetime | None = _optional_time(index=True)


class SavedRecipe(SQLModel, table=True):
    """A recipe under a name of its own, "team/support"; its versions are kept for good. A deleted one stays, nameless.

    version: the number of its latest version.
    """

    __tablename__ = "saved_recipe"
    id: str = Field(default_factory=new_id, primary_key=True)
    owner_id: str = Field(foreign_key="account.id", index=True)
    full_name: str = Field(description="ns/name as its owner spells it")
    name_key: str | None = Field(unique=True, description="full name case-folded; null once deleted")
    is_private: bool = False
    version: int = 0
    created_at: datetime = _time()
    updated_at: datetime = _time(index=True)
    deleted_at: datetime | None = _optional_time()


class SavedRecipeVersion(SQLModel, table=True):
    """One saved text of a recipe and what it meant then.

    text: as it was written; syntax: of what it is written in. as_kind, dtype: what the result shall be, null for a
    model in the base's dtypes. pins: commits by name, and of saved recipes in the text "<id>@<version>". digest: of the
    canonical recipe, which names every input by commit.
    """

    __tablename__ = "saved_recipe_version"
    recipe_id: str = Field(foreign_key="saved_recipe.id", primary_key=True)
    number: int = Field(primary_key=True)
    syntax: str
    text: str = Field(sa_type=Text)
    as_kind: str | None = None
    dtype: str | None = None
    pins: dict[str, Any] = _json(dict)
    digest: str = Field(foreign_key="recipe.digest", index=True)
    message: str = Field(sa_type=Text)
    created_by: str = Field(foreign_key="account.id")
    created_at: datetime = _time()


class Alias(SQLModel, table=True):
    """A movable name for an expression or revision: "team/support@prod" is owner team, name support, channel prod."""

    __tablename__ = "alias"
    id: str = Field(default_factory=new_id, primary_key=True)
    owner_id: str = Field(foreign_key="account.id")
    name: str
    channel: str = ""
    target: str = Field(sa_type=Text, description="an expression")
    version: int = 1
    updated_at: datetime = _time()
    updated_by: str | None = Field(default=None, foreign_key="account.id")
    __table_args__ = (UniqueConstraint("owner_id", "name", "channel"),)


class AliasMove(SQLModel, table=True):
    """One move of an alias, kept for history and rolling back."""

    __tablename__ = "alias_move"
    alias_id: str = Field(foreign_key="alias.id", primary_key=True)
    version: int = Field(primary_key=True)
    target: str = Field(sa_type=Text)
    moved_by: str | None = Field(default=None, foreign_key="account.id")
    moved_at: datetime = _time()
    reason: str = ""


class Evaluation(SQLModel, table=True):
    """One measured number about one revision, as its card or an evaluation job states it."""

    __tablename__ = "evaluation"
    id: str = Field(default_factory=new_id, primary_key=True)
    repository_id: str
    commit_oid: str
    path: str = ""
    task: str | None = None
    dataset: str | None = None
    metric: str
    value: float
    source: str = Field(default="card", description="card or job")
    recipe_digest: str | None = Field(default=None, foreign_key="recipe.digest")
    created_at: datetime = _time()
    __table_args__ = (
        ForeignKeyConstraint(["repository_id", "commit_oid"], ["commit.repository_id", "commit.oid"]),
        Index("ix_evaluation_revision", "repository_id", "commit_oid"),
    )


_UNFINISHED = text("state IN ('queued', 'running')")


class Job(SQLModel, table=True):
    """Work done outside the web process.

    state: queued, running, succeeded, failed, cancelled. A worker holds a lease until lease_until; fence grows with
    every lease, and a write under an old fence is refused. key: jobs of one kind and key are one job while unfinished.
    not_before: it waits until then.
    """

    __tablename__ = "job"
    id: str = Field(default_factory=new_id, primary_key=True)
    kind: str
    key: str | None = Field(default=None, index=True)
    state: str = Field(default="queued", index=True)
    owner_id: str | None = Field(default=None, foreign_key="account.id", index=True)
    payload: dict[str, Any] = _json(dict)
    result: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON, nullable=True))
    error: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON, nullable=True))
    progress: dict[str, Any] = _json(dict)
    attempts: int = 0
    max_attempts: int = 3
    fence: int = 0
    worker: str | None = None
    lease_until: datetime | None = _optional_time()
    cancel_requested: bool = False
    not_before: datetime | None = _optional_time()
    created_at: datetime = _time(index=True)
    started_at: datetime | None = _optional_time()
    finished_at: datetime | None = _optional_time()
    __table_args__ = (
        Index("uq_job_unfinished", "kind", "key", unique=True, sqlite_where=_UNFINISHED, postgresql_where=_UNFINISHED),
    )


class XetScope(SQLModel, table=True):
    """The epoch of a repository's Xet address: raised before xorbs are dropped, so that clients forget them."""

    __tablename__ = "xet_scope"
    repository_id: str = Field(foreign_key="repository.id", primary_key=True)
    epoch: int = 1
    raised_at: datetime | None = _optional_time()


class Xorb(SQLModel, table=True):
    """A verified xorb of one repository and epoch; its bytes are an ordinary blob.

    chunks: packed rows, see `adapterhub.storage.xet`.
    """

    __tablename__ = "xorb"
    repository_id: str = Field(foreign_key="repository.id", primary_key=True)
    epoch: int = Field(primary_key=True)
    xorb_hash: str = Field(primary_key=True)
    digest: str = Field(foreign_key="blob.digest", index=True)
    chunks: bytes
    created_at: datetime = _time()


class UploadSession(SQLModel, table=True):
    """Bytes of one file on their way over our own REST, kept in the data folder until they are complete."""

    __tablename__ = "upload_session"
    id: str = Field(default_factory=new_id, primary_key=True)
    repository_id: str = Field(foreign_key="repository.id", index=True)
    account_id: str = Field(foreign_key="account.id")
    path: str
    branch: str
    size_bytes: int = Field(sa_type=BigInteger)
    created_at: datetime = _time()
    __table_args__ = (UniqueConstraint("repository_id", "account_id", "branch", "path"),)


class AuditEvent(SQLModel, table=True):
    """Who did what to what, when. action is "noun.verb"; never holds a token or file content."""

    __tablename__ = "audit_event"
    id: str = Field(default_factory=new_id, primary_key=True)
    at: datetime = _time(index=True)
    actor_id: str | None = Field(default=None, index=True)
    token_id: str | None = None
    action: str = Field(index=True)
    target_id: str | None = Field(default=None, index=True)
    target_name: str = ""
    before: str | None = None
    after: str | None = None
    request_id: str | None = None
    detail: dict[str, Any] = _json(dict)


class TokenScope(SQLModel, table=True):
    """A permission of a fine-grained token on one account's things or on one repository.

    entity_id: of the account or repository, "" for everything public; entity_type: user, org, model or global.
    """

    __tablename__ = "token_scope"
    token_id: str = Field(foreign_key="token.id", primary_key=True)
    entity_id: str = Field(primary_key=True)
    permission: str = Field(primary_key=True)
    entity_type: str


class RepositoryLike(SQLModel, table=True):
    """That an account likes a repository; `Repository.likes` counts them."""

    __tablename__ = "repository_like"
    repository_id: str = Field(foreign_key="repository.id", primary_key=True)
    account_id: str = Field(foreign_key="account.id", primary_key=True, index=True)
    created_at: datetime = _time()


class AccessRequest(SQLModel, table=True):
    """A user's wish to read the files of a gated repository. status: pending, accepted or rejected.

    fields: what the asker wrote in the form. asked_at is null where access was given unasked.
    """

    __tablename__ = "access_request"
    id: str = Field(default_factory=new_id, primary_key=True)
    repository_id: str = Field(foreign_key="repository.id", index=True)
    account_id: str = Field(foreign_key="account.id", index=True)
    status: str
    reason: str = ""
    fields: dict[str, Any] = _json(dict)
    asked_at: datetime | None = _optional_time()
    updated_at: datetime = _time()
    __table_args__ = (UniqueConstraint("repository_id", "account_id"),)


class Collection(SQLModel, table=True):
    """A titled list of repositories. hex_id: the 24 hex digits that end its slug and alone identify it."""

    __tablename__ = "collection"
    id: str = Field(default_factory=new_id, primary_key=True)
    hex_id: str = Field(unique=True)
    owner_id: str = Field(foreign_key="account.id", index=True)
    title: str
    description: str = ""
    is_private: bool = False
    theme: str
    position: int = 0
    created_at: datetime = _time()
    updated_at: datetime = _time(index=True)
    __table_args__ = (UniqueConstraint("owner_id", "title"),)


class CollectionItem(SQLModel, table=True):
    """A repository in a collection; positions count from 0 without gaps."""

    __tablename__ = "collection_item"
    id: str = Field(default_factory=new_id, primary_key=True)
    collection_id: str = Field(foreign_key="collection.id", index=True)
    repository_id: str = Field(foreign_key="repository.id", index=True)
    position: int
    note: str = ""
    added_at: datetime = _time()
    __table_args__ = (UniqueConstraint("collection_id", "repository_id"),)


class Webhook(SQLModel, table=True):
    """An address that an account wants called when something it watches changes.

    secret_sealed: see `services.sealing`. failures: deliveries in a row that failed for good.
    """

    __tablename__ = "webhook"
    id: str = Field(default_factory=new_id, primary_key=True)
    owner_id: str = Field(foreign_key="account.id", index=True)
    url: str
    domains: list[str] = _json(list)
    secret_sealed: str | None = None
    disabled: bool = False
    disabled_reason: str = ""
    failures: int = 0
    created_at: datetime = _time()
    updated_at: datetime = _time()


class WebhookWatch(SQLModel, table=True):
    """A repository, or all of an account, that a webhook watches. target_type: model, user or org."""

    __tablename__ = "webhook_watch"
    webhook_id: str = Field(foreign_key="webhook.id", primary_key=True)
    target_id: str = Field(primary_key=True, index=True)
    target_type: str


class WebhookDelivery(SQLModel, table=True):
    """One event for one webhook. state: queued, delivered or failed. answer: the first bytes of the last one."""

    __tablename__ = "webhook_delivery"
    id: str = Field(default_factory=new_id, primary_key=True)
    webhook_id: str = Field(foreign_key="webhook.id")
    event: str
    payload: dict[str, Any] = _json(dict)
    state: str = "queued"
    attempts: int = 0
    status: int | None = None
    answer: str = Field(default="", sa_type=Text)
    error: str = Field(default="", sa_type=Text)
    duration_ms: int | None = None
    created_at: datetime = _time()
    sent_at: datetime | None = _optional_time()
    __table_args__ = (Index("ix_webhook_delivery_newest", "webhook_id", "created_at"),)


class Discussion(SQLModel, table=True):
    """A discussion or pull request of a repository; both count from 1 in one row of numbers.

    status: open, closed, merged or draft. Of a pull request: its commits stand at the ref "refs/pr/<num>", base_oid is
    the commit it began from, merge_oid the commit that merged it.
    """

    __tablename__ = "discussion"
    repository_id: str = Field(foreign_key="repository.id", primary_key=True)
    num: int = Field(primary_key=True)
    title: str
    author_id: str = Field(foreign_key="account.id", index=True)
    status: str
    is_pull_request: bool
    base_oid: str | None = None
    merge_oid: str | None = None
    created_at: datetime = _time()
    updated_at: datetime = _time()


class DiscussionEvent(SQLModel, table=True):
    """What happened in a discussion. kind: comment, status-change, commit or title-change, in the client's words.

    detail: of a comment {"text", "history", "hidden"}, of the others what the client reads.
    """

    __tablename__ = "discussion_event"
    id: str = Field(default_factory=new_id, primary_key=True)
    repository_id: str
    num: int
    position: int = Field(description="from 0, in the order of the events")
    kind: str
    author_id: str = Field(foreign_key="account.id")
    detail: dict[str, Any] = _json(dict)
    created_at: datetime = _time()
    updated_at: datetime = _time()
    __table_args__ = (
        ForeignKeyConstraint(["repository_id", "num"], ["discussion.repository_id", "discussion.num"]),
        UniqueConstraint("repository_id", "num", "position"),
    )


class Mirror(SQLModel, table=True):
    """Where a repository of another hub was brought from: for ever. Pinned ones keep their bytes.

    organisation_id: whose token opened it there first; null where none was needed. Who sees it: `MirrorAccess`.
    """

    __tablename__ = "mirror"
    repository_id: str = Field(foreign_key="repository.id", primary_key=True)
    source_url: str
    source_repo_id: str
    organisation_id: str | None = Field(default=None, foreign_key="account.id")
    is_pinned: bool = False
    created_at: datetime = _time()


class MirrorToken(SQLModel, table=True):
    """An organisation's token for a mirrored hub, sealed as `services.sealing` says; sent to that hub alone."""

    __tablename__ = "mirror_token"
    organisation_id: str = Field(foreign_key="account.id", primary_key=True)
    source_url: str
    token_sealed: str
    set_by: str | None = Field(default=None, foreign_key="account.id")
    created_at: datetime = _time()


class MirrorAccess(SQLModel, table=True):
    """That a mirrored hub showed a repository, which it shows not to everybody, to that organisation's token."""

    __tablename__ = "mirror_access"
    repository_id: str = Field(foreign_key="mirror.repository_id", primary_key=True)
    organisation_id: str = Field(foreign_key="account.id", primary_key=True, index=True)
    proven_at: datetime = _time()


class MirrorCheck(SQLModel, table=True):
    """When another hub was last asked what a branch or tag of a mirror is. problem: why it did not answer, or ""."""

    __tablename__ = "mirror_check"
    repository_id: str = Field(foreign_key="mirror.repository_id", primary_key=True)
    revision: str = Field(primary_key=True)
    checked_at: datetime = _time()
    problem: str = ""


class MirrorBlob(SQLModel, table=True):
    """A large file of a mirror whose bytes are here, and when it was last read."""

    __tablename__ = "mirror_blob"
    repository_id: str = Field(foreign_key="mirror.repository_id", primary_key=True)
    digest: str = Field(foreign_key="blob.digest", primary_key=True)
    used_at: datetime = _time(index=True)
