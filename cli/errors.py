"""Errors of the command line, and the exit code that each error, ours or a library's, ends the command with.

CliError                 1  what went wrong and is nobody's refusal: a broken connection, a failing server
├── Misused              2  arguments that do not go together
├── Missing              3  the thing asked for does not exist, or is hidden
└── Declined             4  refused by the server or by a check, or problems were found
"""

from collections.abc import Mapping

from adapterhub.errors import AdapterHubError

OK, FAILED, USAGE, NOT_FOUND, REFUSED, INTERRUPTED = 0, 1, 2, 3, 4, 130

EXIT_CODES: Mapping[int, str] = {
    OK: "done",
    FAILED: "failed: no server answers, the server failed, or a fault of adapterhub",
    USAGE: "arguments or settings that are wrong or do not go together",
    NOT_FOUND: "the repository, revision, file, job, recipe or input does not exist, or your token may not see it",
    REFUSED: "refused: by the server's rules, for a missing right, or because problems were found",
    INTERRUPTED: "interrupted with Ctrl-C; jobs go on",
}


class CliError(AdapterHubError):
    """What the command cannot do; its text is the one line that the user reads."""

    exit_code = FAILED


class Misused(CliError):
    """Arguments that do not go together."""

    exit_code = USAGE


class Missing(CliError):
    """What was asked for does not exist, or is hidden."""

    exit_code = NOT_FOUND


class Declined(CliError):
    """Refused by the server or by a check."""

    exit_code = REFUSED


def of_status(status: int, message: str) -> CliError:
    """The error that a server's answer of that HTTP status means."""
    if status == 404:
        return Missing(message)
    return Declined(message) if 400 <= status < 500 else CliError(message)


def of_code(code: str, message: str) -> CliError:
    """The error that a failed job means. code: a domain error's name in snake_case."""
    if code.endswith("_not_found") or code == "unknown_name":
        return Missing(message)
    if code in ("internal_error", "store_unavailable", "database_busy", "engine_unavailable"):
        return CliError(message)
    return Declined(message)


def exit_code_of(error: AdapterHubError) -> int:
    """The exit code for an error raised in this process, by the library or by the service's own services."""
    if isinstance(error, CliError):
        return error.exit_code
    from adapterhub.hub import errors as hub
    from adapterhub.merging import errors as merging

    if isinstance(error, hub.NotFound | merging.UnknownName):
        return NOT_FOUND
    if isinstance(error, hub.Refused | hub.Conflict | hub.Invalid | hub.TooLarge | merging.MergingError):
        return REFUSED
    return FAILED
