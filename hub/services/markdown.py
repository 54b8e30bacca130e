"""Markdown of strangers as HTML that can do nothing: an allow-list of tags after rendering, never a deny-list.

Source of the allow-list: what GitHub's sanitiser lets through, less forms, styles and media.
"""

import html
import time
from functools import lru_cache
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.token import STANDARD_TYPES
from pygments.util import ClassNotFound

RENDER_BYTES = 256 * 1024
RENDER_S = 2.0
HIGHLIGHT_CHARACTERS = 20_000
"""A fence above this is shown without colours."""

ID_PREFIX = "user-content-"

_TAGS = {
    *("h2", "h3", "h4", "h5", "h6", "p", "br", "hr", "div", "span", "blockquote", "pre", "details", "summary"),
    *("em", "strong", "b", "i", "del", "s", "ins", "sub", "sup", "kbd", "mark", "small", "abbr", "code", "q", "cite"),
    *("ul", "ol", "li", "dl", "dt", "dd", "figure", "figcaption", "a", "img"),
    *("table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td"),
}
_ATTRIBUTES: dict[str, set[str]] = {
    "*": {"id", "title", "lang", "dir"},
    "a": {"href", "name"},
    "img": {"src", "alt", "width", "height"},
    "th": {"align", "colspan", "rowspan", "scope"},
    "td": {"align", "colspan", "rowspan"},
    "ol": {"start"},
    "details": {"open"},
    "span": {"class"},
    "pre": {"class"},
}
_HIGHLIGHT_CLASSES = frozenset(STANDARD_TYPES.values()) - {""}


@lru_cache(maxsize=64)
def render(text: str, files_url: str = "") -> str:
    """The HTML of markdown `text`, safe to put into a page.

    Headings begin at h2, ids at "user-content-". files_url: where relative images and links lead, with a slash at its
    end, e.g. "/ns/name/resolve/main/". Images from other servers become links. Text above 256 KiB, or that takes more
    than 2 s, is shown as it was written.
    """
    if len(text.encode()) > RENDER_BYTES:
        return _as_written(text, "This card is too long to be laid out; here is its text.")
    try:
        dirty = _renderer(files_url).render(text, {"deadline": time.monotonic() + RENDER_S})
    except _TooSlow:
        return _as_written(text, "This card takes too long to be laid out; here is its text.")
    return nh3.clean(
        dirty,
        tags=_TAGS,
        clean_content_tags={"script", "style", "svg", "math", "iframe", "object", "template", "textarea", "title"},
        attributes=_ATTRIBUTES,
        attribute_filter=_attribute,
        url_schemes={"http", "https", "mailto"},
        link_rel="nofollow ugc noopener noreferrer",
        strip_comments=True,
    )


class _TooSlow(Exception):
    """The deadline passed."""


def _as_written(text: str, notice: str) -> str:
    return f"<p><em>{notice}</em></p><pre>{html.escape(text)}</pre>"


def _renderer(files_url: str) -> MarkdownIt:
    md = MarkdownIt("commonmark", {"html": True, "highlight": _highlight}).enable(["table", "strikethrough"])
    md.block.ruler.before("table", "deadline", _block_deadline, {"alt": ["paragraph", "list", "blockquote"]})
    md.inline.ruler.before("text", "deadline", _inline_deadline)

    def finish(state: StateCore) -> None:
        _finish(state, files_url)

    md.core.ruler.push("finish", finish)
    return md


def _block_deadline(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    return _late(state.env)


def _inline_deadline(state: StateInline, silent: bool) -> bool:
    return _late(state.env)


def _late(env: Any) -> bool:
    """False, so that the next rule of the parser has its turn; called at every block and every piece of text."""
    if time.monotonic() > env["deadline"]:
        raise _TooSlow
    return False


def _finish(state: StateCore, files_url: str) -> None:
    """Shift headings, give them ids, and lead relative images and links into the repository."""
    for index, token in enumerate(state.tokens):
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 1)}"
        if token.type == "heading_open":
            token.attrSet("id", _slug(state.tokens[index + 1].content))
        for child in token.children or ():
            if child.type == "image":
                _lead(child.attrs, "src", files_url)
                if _is_remote(str(child.attrs.get("src", ""))):
                    child.type, child.tag = "text", ""
                    child.content = f"[image: {child.content or 'without a description'}]"
            elif child.type == "link_open":
                _lead(child.attrs, "href", files_url)


def _lead(attributes: dict[str, Any], name: str, files_url: str) -> None:
    target = str(attributes.get(name, ""))
    if files_url and target and not target.startswith(("/", "#")) and ":" not in target.split("/")[0]:
        attributes[name] = files_url + target


def _is_remote(url: str) -> bool:
    return url.startswith("//") or ":" in url.split("/")[0]


def _slug(text: str) -> str:
    kept = "".join(c if c.isalnum() or c in "-_" else " " for c in text.lower())
    return "-".join(kept.split())[:80] or "section"


def _attribute(tag: str, name: str, value: str) -> str | None:
    """The value an attribute may keep; None takes the attribute away."""
    if name in ("id", "name"):
        return value if value.startswith(ID_PREFIX) else ID_PREFIX + value
    if name == "href":
        fragment = value.startswith("#") and not value.startswith("#" + ID_PREFIX)
        return f"#{ID_PREFIX}{value[1:]}" if fragment else None if value.startswith(("//", "\\")) else value
    if name == "src":
        return None if _is_remote(value) or value.startswith("\\") else value
    if name == "class":
        allowed = {"highlight"} if tag == "pre" else _HIGHLIGHT_CLASSES
        return value if value in allowed else None
    return value


def _highlight(code: str, language: str, _attributes: str) -> str:
    """A fenced block in colours by class; "" leaves it to the renderer, which shows it plain."""
    if not language or len(code) > HIGHLIGHT_CHARACTERS:
        return ""
    try:
        lexer = get_lexer_by_name(language)
    except ClassNotFound:
        return ""
    return f'<pre class="highlight">{highlight(code, lexer, HtmlFormatter(nowrap=True))}</pre>'
