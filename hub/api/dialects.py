"""Which of the wire dialects a path belongs to: it decides the shape of errors, and nothing else."""

import re
from enum import Enum


class Dialect(Enum):
    """HF: Hugging Face; LFS: git-lfs batch; REST: our own; OPENAI: /v1 and tasks; PAGE: read by people."""

    HF = "hf"
    LFS = "lfs"
    REST = "rest"
    OPENAI = "openai"
    PAGE = "page"


_HF = re.compile(
    r"/api/(?:models|datasets|spaces|kernels|buckets|repos|whoami-v2|validate-yaml|agent-harnesses|users|organizations"
    r"|collections|settings|papers|daily_papers|scheduled-jobs|[a-z]+-tags-by-type)(?:/|$)"
    r"|/xet/|/uploads(?:/|$)|/downloads/|/(?:(?:datasets|spaces|kernels)/)?[^/]+/[^/]+/resolve/"
)
_LFS = re.compile(r"/(?:(?:datasets|spaces|kernels)/)?[^/]+/[^/]+\.git/")


def dialect_of(path: str) -> Dialect:
    """The dialect that answers at `path` (decoded or not, without the query)."""
    if path.startswith(("/v1/", "/models/")):
        return Dialect.OPENAI
    if _HF.match(path):
        return Dialect.HF
    if path.startswith(("/api/", "/health/")) or path == "/health":
        return Dialect.REST
    if _LFS.match(path):
        return Dialect.LFS
    return Dialect.PAGE
