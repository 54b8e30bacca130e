"""What our own REST takes and gives, as /docs shows it. Times are ISO 8601 in UTC; digests are "sha256:<hex>"."""

from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from adapterhub.hub.services.recipe_texts import EXPRESSION, YAML
from adapterhub.merging.recipes.documents import MAX_CHARACTERS
from adapterhub.merging.recipes.expression import DEFAULT_LIMITS

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]
REPO_ID = r"^[^/]{1,96}/[^/]{1,96}$"
EXPRESSION_CHARACTERS = DEFAULT_LIMITS.characters


class Strict(BaseModel):
    """A request body: a field that is not known is an error and not a silent wish."""

    model_config = ConfigDict(extra="forbid")


class Problem(BaseModel):
    """An error (RFC 9457), sent as application/problem+json; `code` names the kind of error."""

    type: str
    title: str
    status: int
    detail: str
    code: str


class Progress(BaseModel):
    """How far a job is; empty before it starts."""

    done: int = 0
    total: int = 0
    unit: str = ""
    message: str = ""


class JobError(BaseModel):
    code: str
    message: str


class JobView(BaseModel):
    """Work that runs beside the web process. `result` depends on the kind of job."""

    id: str
    kind: str = Field(examples=["merge", "port"])
    state: State
    progress: Progress
    result: dict[str, Any] | None = None
    error: JobError | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    attempts: int = Field(description="How often a worker began it.")


class JobList(BaseModel):
    items: list[JobView]


class Written(Strict):
    """A recipe, as an expression or as the text of a recipe file, which mergekit's files are too."""

    expression: str | None = Field(
        default=None,
        examples=["demo/base + 0.7*demo/code + 0.5*demo/licences"],
        max_length=EXPRESSION_CHARACTERS,
    )
    yaml: str | None = Field(
        default=None,
        examples=["merge_method: ties\nbase_model: demo/base\nmodels: [...]"],
        max_length=MAX_CHARACTERS,
        description="Text of a recipe file, in place of an expression.",
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.expression is None) == (self.yaml is None):
            raise ValueError("give one of expression and yaml")
        return self

    @property
    def text(self) -> str:
        return self.expression if self.expression is not None else self.yaml or ""

    @property
    def syntax(self) -> str:
        return EXPRESSION if self.expression is not None else YAML


class MergeRequest(Written):
    """What to merge and where to put it."""

    push: str | None = Field(
        default=None,
        pattern=REPO_ID,
        description="Repository that takes the result, made when missing; default: YOU/merge-<8 hex of the recipe>.",
    )
    as_kind: str | None = Field(
        default=None, alias="as", examples=["lora"], description="Form of the result; default: a full model."
    )
    dtype: str | None = Field(default=None, examples=["BF16"], description="dtype of the result; default: the base's.")
    heads: str | None = Field(
        default=None,
        max_length=600,
        examples=["keep:demo/code", "drop"],
        description="What becomes of the inputs' own task heads: keep:NAME, multi, or drop; default: refuse.",
    )
    private: bool = Field(default=False, description="Whether a repository made for the result is private.")
    message: str | None = Field(default=None, max_length=1000, description="Summary of the commit.")


class TuningRequest(Strict):
    """Which recipe's weights to search, by what score, and for how long."""

    expression: str = Field(examples=["demo/base + 0.5*demo/code + 0.5*demo/licences"], max_length=4096)
    task: list[dict[str, Any]] | None = Field(
        default=None,
        max_length=10_000,
        examples=[[{"prompt": "2 + 2 = ", "completion": "4"}]],
        description="Held-out examples of one form: text; prompt, completion; prompt, choices, answer; text, label.",
    )
    entropy: bool = Field(default=False, description="Whether the entropy on texts is minimised, in place of the loss.")
    judge: str | None = Field(
        default=None,
        max_length=2048,
        description="URL that each candidate is posted to and that answers a number, in place of task.",
    )
    larger_is_better: bool = Field(default=False, description="Of what the judge says.")
    weights: tuple[float, float] = Field(default=(-1.5, 1.5), description="Lowest and highest weight.")
    parameters: dict[str, tuple[float, float] | None] = Field(
        default_factory=dict, description="Parameters of methods to search too, by name; null takes the whole range."
    )
    optimiser: Literal["cma", "spsa"] = "cma"
    evaluations: int = Field(default=40, ge=1, le=1000, description="Most candidates that are scored.")
    seconds: float = Field(default=3600, gt=0, le=86400, description="Most seconds of one attempt of the job.")
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    penalty: float = Field(default=0, ge=0, description="Factor of the mean absolute weight; LoraHub takes 0.05.")


class PortRequest(Strict):
    """Which patch to carry to which base."""

    patch: str = Field(examples=["demo/code", "demo/code@main"], max_length=512)
    to: str = Field(examples=["demo/base-v2"], max_length=512)
    push: bool | str = Field(
        default=True,
        description="true: a branch of the patch's own repository; a repository: its main branch; false: report only.",
    )
    strategy: str = Field(default="direct", examples=["direct"])


class Explained(Written):
    """What to explain, and what the result shall be."""

    as_kind: str | None = Field(default=None, alias="as", examples=["lora"], max_length=96)
    dtype: str | None = Field(default=None, examples=["BF16"], max_length=96)


class RecipeView(BaseModel):
    """A recipe: what it means (canonical), its digest, and what its author wrote."""

    digest: str
    text: str
    canonical: dict[str, Any]
    created_at: datetime | None = None


class SavedRecipeVersion(BaseModel):
    """A version of a saved recipe. What it says is null where it names something that you may not see."""

    model_config = ConfigDict(extra="allow")

    version: int
    syntax: str
    text: str | None = Field(description="As it was written: its names are not pinned.")
    digest: str | None = Field(description="Of the recipe with its names at the commits of the day it was saved.")
    message: str | None
    author: str | None
    created_at: datetime


class SavedRecipeView(SavedRecipeVersion):
    """A saved recipe and one of its versions. `name` is how expressions call it; `canonical` has the commits."""

    id: str = Field(examples=["team/support"])
    name: str = Field(examples=["recipe/team/support"])
    private: bool
    latest: int
    updated_at: datetime


class SavedRecipeList(BaseModel):
    items: list[SavedRecipeView]
    next: str | None = Field(description="URL of the next page, null on the last.")


class SavedRecipeVersionList(BaseModel):
    items: list[SavedRecipeVersion]
    next: str | None = Field(description="URL of the next page, null on the last.")


class NewRecipe(Explained):
    """A recipe to save: a first version, or the next one of a recipe that is there."""

    name: str = Field(examples=["team/support"], pattern=REPO_ID)
    message: str = Field(default="", max_length=1000)
    private: bool = Field(default=False, description="Of one that is made; it is where any input is private or gated.")


class RecipeChanges(Strict):
    """What to change of a saved recipe; null and absent fields stay."""

    name: str | None = Field(default=None, examples=["team/help"], pattern=REPO_ID)
    private: bool | None = None


class RecipeRun(Strict):
    """How to merge by a saved recipe again."""

    version: int | None = Field(default=None, ge=1, description="Default: the latest.")
    latest: bool = Field(
        default=False, description="At the commits that its names mean now, not those it was saved at."
    )
    push: str | None = Field(default=None, pattern=REPO_ID, description="As of a merge.")
    private: bool = False
    message: str | None = Field(default=None, max_length=1000)


class ReproduceRequest(Strict):
    """A merge's result that shall be made again."""

    repo: str = Field(examples=["demo/both"], pattern=REPO_ID)
    revision: str | None = Field(default=None, max_length=200)


class TwoRecipes(Strict):
    """Two recipes to compare: each a saved recipe's name, a digest, or an expression."""

    before: str = Field(examples=["team/support@1"], max_length=EXPRESSION_CHARACTERS)
    after: str = Field(examples=["team/support"], max_length=EXPRESSION_CHARACTERS)


class RecipeDifference(BaseModel):
    """What two recipes differ in: `changes` has inputs, weights, methods and parameters, each with a sentence."""

    before: dict[str, str]
    after: dict[str, str]
    is_same: bool
    changes: list[dict[str, Any]]


class ParsedRecipe(BaseModel):
    """An expression that parses, printed in one normal way, and the names in it."""

    text: str
    references: list[str]


class Estimate(BaseModel):
    """How long a merge may take. source: whether the rate was measured here, and on what."""

    seconds: float
    bytes_per_s: float
    source: str


class Explanation(BaseModel):
    """What a merge would do: inputs by commit, the method of every output tensor, bytes on disk, peak memory, time."""

    model_config = ConfigDict(extra="allow")

    digest: str
    canonical: dict[str, Any]
    methods: dict[str, int] = Field(description="Tensors by method.", examples=[{"ties": 28, "sum": 4, "copied": 2}])
    per_tensor: list[dict[str, Any]]
    size_bytes: int
    peak_bytes: int
    estimate: Estimate
    approximations: list[str] = Field(description="Sentences on what is no exact arithmetic on the inputs.")
    licences: list[str]


class StoredFile(BaseModel):
    """A file that arrived whole and is part of a commit."""

    path: str
    size: int = Field(description="Bytes.")
    sha256: str = Field(description="64 hexadecimal digits.")
    commit: str


class PartialUpload(BaseModel):
    """A file of which a part is here; send the rest from `offset`."""

    path: str
    offset: int = Field(description="Bytes that arrived.")
    total: int | None = Field(description="Bytes of the whole file, where the sender said.")


class RepositorySummary(BaseModel):
    """One line of the catalogue."""

    model_config = ConfigDict(extra="allow")

    id: str
    kind: str


class RepositoryList(BaseModel):
    items: list[RepositorySummary]
    total: int
    kinds: list[str] = Field(description="Every kind that there is to filter by.")
    next: str | None = Field(description="URL of the next page, null on the last.")


class PatchList(BaseModel):
    """Patches of one repository, in the order of their folders."""

    items: list[dict[str, Any]]
    total: int
    next: str | None = Field(description="URL of the next page, null on the last.")


class RepositoryView(BaseModel):
    """Everything known of one repository at one commit."""

    model_config = ConfigDict(extra="allow")

    id: str
    commit: str
    kind: str
    patches: list[dict[str, Any]] = Field(description="The first 100, or the one that was asked for.")
    patch_count: int
    files: list[dict[str, Any]]


class SiteNorm(BaseModel):
    """How much a patch changes one parameter: the Frobenius norm of its delta."""

    site: str
    layer: str
    module: str
    norm: float


class Layers(BaseModel):
    """The picture of a patch by layer. While a job computes it, `state` is queued or running and sites are empty."""

    state: State
    job: str | None = None
    error: JobError | None = None
    sites: list[SiteNorm]


class NewUser(Strict):
    name: str = Field(max_length=96)
    fullname: str = Field(default="", max_length=200)
    email: str = Field(default="", max_length=200)
    is_admin: bool = False


class CreatedUser(BaseModel):
    """A fresh user with a first token, which is shown this once."""

    name: str
    token: str


class UserView(BaseModel):
    name: str
    fullname: str
    email: str
    is_admin: bool
    created_at: datetime
    disabled_at: datetime | None = None


class UserList(BaseModel):
    items: list[UserView]


class NewOrganisation(Strict):
    name: str = Field(max_length=96)
    fullname: str = Field(default="", max_length=200)


class OrganisationView(BaseModel):
    name: str
    fullname: str


class UnfitPatches(Strict):
    """What becomes of patches with NaN or infinity, or that do not fit their base; null as the service's setting."""

    unfit_patches: Literal["refuse", "flag"] | None


class AccountSettings(BaseModel):
    """What an account chose, null for nothing, and what therefore happens."""

    account: str
    unfit_patches: str | None
    effective: str


class MemberView(BaseModel):
    """A user of an organisation; `role` is admin, write, contributor or read."""

    name: str
    fullname: str
    role: str


class MemberList(BaseModel):
    items: list[MemberView]


class MyOrganisation(BaseModel):
    """An organisation of yours, with your role in it."""

    name: str
    fullname: str
    role: str


class MyOrganisationList(BaseModel):
    items: list[MyOrganisation]


class Scope(Strict):
    """What a fine-grained token may do with one thing."""

    name: str = Field(
        examples=["team", "team/model"], max_length=200, description="A repository, or an account: all of it."
    )
    permissions: list[str] = Field(examples=[["repo.content.read"]], max_length=100)


class NewToken(Strict):
    """A token to make; the last three are for fine-grained ones."""

    name: str = Field(max_length=200)
    role: Literal["read", "write", "admin", "fine-grained"]
    days: int | None = Field(default=None, description="Days until it ends; null: never.")
    scoped: list[Scope] = Field(default_factory=list, max_length=100)
    everywhere: list[str] = Field(
        default_factory=list, examples=[["discussion.write"]], max_length=100, description="For all that is public."
    )
    reads_gated: bool = Field(default=False, description="Whether it opens gated repositories that you may open.")


class TokenScopeView(BaseModel):
    name: str
    type: str = Field(description="user, org or model.")
    permissions: list[str]


class TokenView(BaseModel):
    """A token of yours, without its text."""

    id: str
    name: str
    role: str
    created_at: datetime
    expires_at: datetime | None
    scoped: list[TokenScopeView]
    everywhere: list[str]
    reads_gated: bool


class CreatedToken(TokenView):
    """A fresh token with its text, which is shown this once."""

    token: str


class TokenList(BaseModel):
    items: list[TokenView]


class AskedAccess(Strict):
    """A request for the files of a gated repository. fields: the answers to what its card asks, by name."""

    fields: dict[str, str] = Field(default_factory=dict)


class AccessView(BaseModel):
    """Where a request for the files of a gated repository stands."""

    status: str = Field(description="accepted, pending or rejected; when shown: open, ask, pending or rejected.")
    reason: str = ""


class Disabling(Strict):
    """Whether a repository is closed to everybody but administrators, and why."""

    disabled: bool
    reason: str = Field(default="", max_length=500)


class NewRole(Strict):
    role: Literal["admin", "write", "contributor", "read"] | None = Field(description="null takes the member out.")


class DeliveryView(BaseModel):
    """One event sent to a webhook. answer: the first bytes of what it answered last."""

    id: str
    event: str = Field(examples=["repo.content.update"])
    state: Literal["queued", "delivered", "failed"]
    attempts: int
    status: int | None
    error: str
    answer: str
    duration_ms: int | None
    created_at: datetime
    sent_at: datetime | None


class DeliveryList(BaseModel):
    items: list[DeliveryView]


class LoadRequest(Strict):
    """A model to bring into memory, named as in a chat."""

    model: str = Field(min_length=1, max_length=4096, examples=["demo/base + 0.7*demo/code"])
    pinned: bool = Field(default=False, description="Keep it for good, until the server stops.")


class LoadedVariant(BaseModel):
    """What is in memory now. size_bytes: what it takes beyond its base, or the base's own for a base."""

    model: str
    vid: str = Field(description="The recipe's digest: `vid:sha256-...` names it as a model.")
    size_bytes: int
    pinned: bool
