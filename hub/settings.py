"""The service's one Settings class: read once from ADAPTERHUB_* variables and passed down."""

import os
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

_PREFIX = "ADAPTERHUB_"

CLIENT_VARIABLES = frozenset(
    {"ADAPTERHUB_ENDPOINT", "ADAPTERHUB_TOKEN", "ADAPTERHUB_UPSTREAM_TOKEN", "ADAPTERHUB_DEBUG"}
)
"""Variables of the command line client, which the service does not read and does not refuse."""


class Elsewhere(BaseModel):
    """A model that another OpenAI-compatible server computes."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(pattern="^https?://")
    model: str
    api_key: SecretStr | None = None
    logprobs: int = Field(default=20, ge=1)


class Settings(BaseSettings):
    """Each field's default, unit and help; an ADAPTERHUB_ variable that is none of these is an error.

    Raises pydantic.ValidationError naming the variable when one is unknown, malformed or out of range.
    """

    model_config = SettingsConfigDict(env_prefix=_PREFIX, extra="forbid")

    data: Path = Field(
        default=Path.home() / ".local" / "share" / "adapterhub",
        description="Folder for the database, the blobs and the secrets.",
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    public_url: str | None = Field(
        default=None, description="URL that clients use, as in HF_ENDPOINT; default: the request's own Host."
    )
    database_url: str | None = Field(
        default=None, description="sqlite:///PATH or postgresql+psycopg://…; default: adapterhub.db in the data folder."
    )
    storage_url: str | None = Field(
        default=None, description="file:///PATH or s3://BUCKET/PREFIX; default: blobs in the data folder."
    )
    secret: SecretStr | None = Field(
        default=None,
        min_length=32,
        description="Key that signs upload links and Xet tokens; default: made at first start and kept in the data "
        "folder. Required to listen on a public address.",
    )
    admin_name: str = Field(default="admin", description="Name of the first administrator.")
    admin_token: SecretStr | None = Field(
        default=None, min_length=20, description="Token of the first administrator, for unattended starts."
    )
    device: str = Field(default="auto", description="Where the engine computes: auto, cpu, cuda, cuda:0, …")
    engine: Literal["embedded", "external", "none"] = Field(
        default="embedded",
        description="Which engine serves models: a process of this service, a vLLM or SGLang server, or none.",
    )
    engine_url: str | None = Field(
        default=None, pattern="^https?://", description="URL of the vLLM or SGLang server, for the engine external."
    )
    engine_kind: Literal["auto", "vllm", "sglang"] = Field(
        default="auto", description="What that server is; auto asks it."
    )
    engine_api_key: SecretStr | None = Field(
        default=None, min_length=1, description="Key that the server was started with (--api-key); default: none."
    )
    engine_base: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+(@[0-9a-f]{40})?$",
        description="Repository here, NAME or NAME@COMMIT, of the base that the server was started with; default: the "
        "one that it names.",
    )
    engine_folder: Path | None = Field(
        default=None,
        description="Folder, on fast storage, that the server reads too: adapters and models are written there for it; "
        "default: handoff in the data folder.",
    )
    engine_mount: str | None = Field(
        default=None, description="Path under which the server sees that folder; default: the same."
    )
    engine_folder_bytes: int = Field(
        default=64 << 30, ge=1 << 20, description="Bytes kept in that folder; what was longest unused goes first."
    )
    engine_max_rank: int = Field(
        default=16, ge=1, le=65536, description="Largest LoRA rank that the server takes (its --max-lora-rank)."
    )
    engine_max_loras: int = Field(
        default=8, ge=1, le=4096, description="Most adapters loaded in the server at a time; the longest unused goes."
    )
    engine_truncate: bool = Field(
        default=False,
        description="Whether a sum of more ranks than the server takes becomes the nearest one that it takes; without, "
        "it is refused.",
    )
    engine_dense: bool = Field(
        default=False,
        description="Whether what is no LoRA may take the place of the server's own weights, one variant at a time; "
        "without, it is refused. Nobody else may use the server then.",
    )
    workers: int = Field(default=1, ge=0, le=64, description="Job processes.")
    threads: int = Field(default=0, ge=0, description="torch threads of a process; 0 follows the cgroup's quota.")
    pool_bytes: int = Field(
        default=8 << 30,
        ge=1 << 20,
        description="Bytes of bases, variants and the keys and values of answers that the engine may hold.",
    )
    served_elsewhere: dict[str, Elsewhere] = Field(
        default={},
        max_length=64,
        description="Models that other OpenAI-compatible servers compute where they are members of compositions, as "
        'JSON: {"lab/large": {"url": "https://host/v1", "model": "its name there", "api_key": "…", "logprobs": 20}}. '
        "logprobs: how many log probabilities it tells at each token.",
    )
    max_logprobs: int = Field(
        default=20,
        ge=0,
        description="Most alternatives whose log probabilities a completion may ask for at each token.",
    )
    warm: list[str] = Field(
        default=[],
        max_length=256,
        description="Models and expressions that are loaded at the start and stay.",
    )
    served_recipes: int = Field(
        default=10_000,
        ge=1,
        description="Expressions that are known because they were asked for, so that vid:sha256-… finds them; beyond "
        "that the longest unasked are forgotten. What was merged or saved is kept.",
    )
    merge_memory_bytes: int = Field(default=2 << 30, ge=1 << 24, description="Bytes of memory one merge may use.")
    regular_max_bytes: int = Field(
        default=1 << 20, ge=1024, description="Largest file that a commit may carry inside its own body."
    )
    multipart_min_bytes: int = Field(
        default=4 << 30,
        ge=1,
        description="Smallest file that goes in parts over LFS, where the client offers it: a part that fails is sent "
        "again alone, and the whole is read once more at the end.",
    )
    multipart_part_bytes: int = Field(
        default=64 << 20, ge=1 << 16, description="Bytes of one part; more where a file would have over 10000 of them."
    )
    pickles: Literal["refuse", "store"] = Field(
        default="store",
        description="Whether a commit may add pickles (.bin, .pt, ...), which run code when they are loaded: kept "
        "unopened, or refused.",
    )
    unfit_patches: Literal["refuse", "flag"] = Field(
        default="refuse",
        description="What a commit does with a patch that holds NaN or infinity or does not fit its base: refused, or "
        "kept with its problems shown; owners may choose otherwise for what is theirs.",
    )
    file_max_bytes: int = Field(default=1 << 40, ge=1, description="Largest file accepted, in bytes.")
    git_max_bytes: int = Field(
        default=8 << 30, ge=1 << 20, description="Largest pack that one `git clone` or fetch is sent, in bytes."
    )
    commit_max_bytes: int = Field(default=512 << 20, ge=1 << 20, description="Largest commit request body, in bytes.")
    commit_max_files: int = Field(default=25_000, ge=1, description="Most operations in one commit.")
    xet_retention_days: int = Field(
        default=22,
        ge=0,
        description="Days that uploaded chunks are kept for clients that refer to them again; clients remember them "
        "for 21.",
    )
    cache_bytes: int = Field(
        default=64 << 30, ge=1 << 20, description="Bytes of local copies kept when blobs rest in S3."
    )
    webhook_retry_s: int = Field(
        default=10,
        ge=0,
        description="Seconds before a failed webhook is tried again; each later pause is 4 times longer.",
    )
    outbound_allow: str = Field(
        default="",
        description="Hosts (name or name:port) and networks (10.0.0.0/8) that may be reached although their addresses "
        "are private, with commas between; public ones always may.",
    )
    mirror_url: str | None = Field(
        default=None,
        pattern="^https?://",
        description="URL of another hub whose repositories are fetched, kept and served here when somebody reads them; "
        "default: none.",
    )
    mirror_ttl_s: float = Field(
        default=300, ge=0, description="Seconds after which a mirror's branch or tag is looked up again."
    )
    mirror_max_bytes: int = Field(
        default=200 << 30, ge=0, description="Bytes of large mirrored files kept; those longest unused go first."
    )
    mirror_missing_ttl_s: float = Field(
        default=60,
        ge=0,
        description="Seconds for which what the mirrored hub does not have, or refuses, is not asked for again.",
    )
    mirror_anonymous: bool = Field(
        default=False,
        description="Whether callers without a token may have things fetched, too; without, they see what is here.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Least level logged.")
    log_format: Literal["auto", "json", "console"] = Field(
        default="auto", description="auto: console on a terminal, else JSON, one object a line."
    )

    @model_validator(mode="after")
    def _refuse_unknown_variables(self) -> Self:
        known = {_PREFIX + name.upper() for name in type(self).model_fields} | CLIENT_VARIABLES
        unknown = sorted(name for name in os.environ if name.startswith(_PREFIX) and name not in known)
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: no such setting; `adapterhub serve --help` lists them")
        return self

    @model_validator(mode="after")
    def _require_engine_url(self) -> Self:
        if self.engine == "external" and self.engine_url is None:
            raise ValueError("ADAPTERHUB_ENGINE=external needs ADAPTERHUB_ENGINE_URL, the server's address")
        return self

    @property
    def handoff_folder(self) -> Path:
        """Where files for an external engine are written."""
        return (self.engine_folder or self.data / "handoff").absolute()

    @property
    def sqlalchemy_url(self) -> str:
        """URL of the metadata database."""
        return self.database_url or f"sqlite:///{(self.data / 'adapterhub.db').absolute()}"

    @property
    def blob_url(self) -> str:
        """URL of the byte store."""
        return self.storage_url or f"file://{(self.data / 'blobs').absolute()}"
