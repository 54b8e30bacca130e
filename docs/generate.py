"""Writes the reference pages that follow from the code; `tests/test_docs.py` compares what lies there with them."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic_core import PydanticUndefined

from adapterhub.errors import AdapterHubError
from adapterhub.hub import errors as hub_errors
from adapterhub.hub.api.errors import snake_case, status_of
from adapterhub.hub.services import accounts
from adapterhub.hub.services.access import GLOBAL_PERMISSIONS, RULES
from adapterhub.hub.settings import CLIENT_VARIABLES, Settings
from adapterhub.merging import analysis, manifest, methods, patches, stacking, terms, transfer
from adapterhub.merging import errors as merging_errors
from adapterhub.merging.registry import parameters_of
from adapterhub.storage import errors as storage_errors
from adapterhub.storage.stores import known_backends

FOLDER = Path(__file__).parent
NOTE = "<!-- made by docs/generate.py: change the code, not this file -->\n"


def pages() -> Mapping[str, str]:
    """Every generated page by its file name."""
    return {
        "settings.md": settings(),
        "errors.md": errors(),
        "variants.md": variants(),
        "rights.md": rights(),
        "stacking.md": NOTE + stacking.page(),
        manifest.SCHEMA_FILE: json.dumps(manifest.schema(), indent=2, sort_keys=True) + "\n",
    }


def settings() -> str:
    """The page of settings: one heading each."""
    client = ", ".join(f"`{name}`" for name in sorted(CLIENT_VARIABLES))
    intro = (
        "# Settings\n\nThe server reads its settings once, from environment variables. An unknown `ADAPTERHUB_` "
        f"variable is an error, except those of the command line client: {client}.\n"
    )
    parts = [intro]
    for name, field in Settings.model_fields.items():
        default = "none" if field.default in (None, PydanticUndefined) else f"`{_home(str(field.default))}`"
        parts.append(f"## ADAPTERHUB_{name.upper()}\n\n{field.description}\n\nDefault: {default}\n")
    return NOTE + "\n".join(parts)


def errors() -> str:
    """The page of error codes: what each means and its HTTP status."""
    text = (
        "# Errors\n\nEvery refusal has a code, sent as `X-Error-Code` with its sentence in `X-Error-Message`. Our own "
        "REST answers `application/problem+json` with the code in snake case as `code`; the Hugging Face dialect "
        '`{"error": …}`; the OpenAI dialect `{"error": {"message", "type", "param", "code"}}`.\n'
    )
    found = {kind.__name__: kind for module in (hub_errors, merging_errors, storage_errors) for kind in _own(module)}
    for name, kind in sorted(found.items()):
        example = kind.__new__(kind)
        about = (kind.__doc__ or _nearest_doc(kind)).strip().split("\n\n")[0]
        text += f"\n## {name}\n\n`{snake_case(name)}`, status {status_of(example)}. {_line(about)}\n"
    return NOTE + text


def rights() -> str:
    """The page of rights: what each role and each kind of token may do."""
    text = (
        "# Rights\n\nA deed is allowed when the role in the owning account and the token both allow it. "
        "One's own account counts as the role admin. An administrator of the service, with a token of role admin, "
        "may do everything; everybody reads what is public. To others, what is private is as if it were not there.\n\n"
        "- A **contributor** may write to the repositories that they made, too.\n"
        "- A token of role **write** may do what its account may do; one of role **read** only what the table says.\n"
        "- A **fine-grained** token has permissions on repositories and accounts; one of those named here is needed on "
        "the thing or on its owner. `--reads-gated` lets it read public gated repositories that its account may read. "
        "It neither likes nor asks for access, and makes no tokens.\n"
        "- The files of a **gated** repository are for its members and those who were let in; "
        "a **disabled** one is closed to all but administrators.\n\n"
        "| deed | roles | read token | fine-grained |\n|---|---|---|---|\n"
    )
    for rule in RULES.values():
        roles = ", ".join(role for role in accounts.MEMBER_ROLES if role in rule.roles) if rule.roles else "everybody"
        permissions = " or ".join(f"`{one}`" for one in sorted(rule.permissions))
        text += f"| {rule.about} | {roles} | {'yes' if rule.reads else 'no'} | {permissions} |\n"
    everywhere = ", ".join(f"`{one}`" for one in GLOBAL_PERMISSIONS)
    return NOTE + text + f"\nFor all that is public (`--scope global=…`) a token can carry {everywhere}.\n"


def variants() -> str:
    """The page of everything that is found by scanning: methods, kinds, terms, strategies, analyses, back ends."""
    text = "# Variants\n\nEach is one file, found by scanning its package.\n\n## Merge methods\n"
    for name, method in methods.methods().items():
        text += _entry(name, method.title, method.summary, method.source)
        parameters = parameters_of(method.parameters)
        text += "\n" if parameters else ""
        for one in parameters:
            text += f"- `{one.name}` ({one.type}, {one.range}, default `{one.default}`): {one.help}\n"
    for heading, found in (
        ("Patch kinds", patches.kinds().values()),
        ("Transfer strategies", transfer.strategies().values()),
        ("Analyses", analysis.analyses().values()),
    ):
        text += f"\n## {heading}\n" + "".join(_entry(one.name, one.title, one.summary, one.source) for one in found)
    text += "\n## Terms\n"
    for name, term in terms.terms().items():
        text += f"\n### {name}\n\n{_line(term.summary).rstrip('.')}. Fields: {', '.join(term.fields)}.\n"
    text += "\n## Storage back ends\n"
    for scheme, backend in known_backends().items():
        text += f"\n### {scheme}\n\n`ADAPTERHUB_STORAGE_URL={backend.example}`\n"
    return NOTE + text


def _entry(name: str, title: str, summary: str, source: str) -> str:
    return f"\n### {name}\n\n{title}: {_line(summary).rstrip('.')}. Source: {_line(source).rstrip('.')}.\n"


def _own(module: object) -> Iterable[type[AdapterHubError]]:
    return [
        v
        for v in vars(module).values()
        if isinstance(v, type) and issubclass(v, AdapterHubError) and v is not AdapterHubError
    ]


def _nearest_doc(kind: type) -> str:
    return next(base.__doc__ for base in kind.__mro__[1:] if base.__doc__)


def _line(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def _home(text: str) -> str:
    return text.replace(str(Path.home()), "~")


def main() -> None:
    for name, text in pages().items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
