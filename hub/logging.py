"""Structured logs: one event a line, each with the id of the request it belongs to, and never a token.

Redaction is the last step before an event is written, so it covers tracebacks, libraries' own messages and values that
a caller logs by mistake.
"""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog
from structlog.typing import Processor

from adapterhub.hub.settings import Settings

_SECRETS = re.compile(
    r"\bah_[A-Za-z0-9_-]{8,}"
    r"|\bhf_[A-Za-z0-9]{8,}"
    r"|(?<=Bearer )[^\s'\"]+"
    r"|(?<=Basic )[^\s'\"]+"
    r"|(?<=[?&]signature=)[^\s&'\"]+",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """`text` with every token, credential and signature replaced by "[redacted]"."""
    return _SECRETS.sub("[redacted]", text)


def configure(settings: Settings, stream: TextIO | None = None) -> None:
    """Send everything that structlog or the standard library logs to `stream` (default: stderr), as settings say."""
    stream = stream or sys.stderr
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderers(settings, is_terminal=stream.isatty()),
                _redact_line,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    # These tell of every statement and request at info; ours says it once.
    for name in ("uvicorn.access", "alembic", "botocore", "urllib3", "httpx", "httpcore"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True


def _renderers(settings: Settings, *, is_terminal: bool) -> list[Processor]:
    if settings.log_format == "console" or (settings.log_format == "auto" and is_terminal):
        # plain: with the values of local variables, a traceback would show secrets
        plain = structlog.dev.plain_traceback
        return [structlog.dev.ConsoleRenderer(colors=is_terminal, exception_formatter=plain)]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]


def _redact_line(logger: Any, method: str, event: str | bytes | MutableMapping[str, Any]) -> str:
    return redact(str(event))
