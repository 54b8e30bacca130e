"""Cards of strangers become HTML that can do nothing, within a time."""

import re
import time

import pytest

from adapterhub.hub.services import markdown
from adapterhub.hub.services.markdown import render

ATTACKS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[a](javascript:alert(1))",
    "<a href='jav&#x61;script:alert(1)'>a</a>",
    "<a href='data:text/html,<script>alert(1)</script>'>a</a>",
    "<svg><script>alert(1)</script></svg>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)></style></mglyph></table></mtext></math>",
    "<style>body{display:none}</style>",
    "<form action=//evil><input name=x></form>",
    "<base href=//evil>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<p hx-get=/api/x data-hx-get=/api/x hx-trigger=load>x</p>",
    "<details ontoggle=alert(1) open>x</details>",
    "<p style='position:fixed' class='tabs'>x</p>",
    '```python"><script>alert(1)</script>\nx\n```',
]
FORBIDDEN = re.compile(
    r"<(script|svg|math|style|form|input|base|iframe)|\son\w+=|javascript:|data:|hx-|style=|class=.tabs|//evil", re.I
)


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_that_acts_survives(attack: str) -> None:
    shown = render(f"before\n\n{attack}\n\nafter")
    tags = re.findall(r"<[^>]*>", shown)
    assert not any(FORBIDDEN.search(tag) for tag in tags), shown


def test_ids_and_fragments_keep_to_their_own_names() -> None:
    shown = render("# Use\n\n<p id=search name=x>a</p>\n\n[to](#use)")
    assert 'id="user-content-use"' in shown
    assert 'id="user-content-search"' in shown
    assert 'href="#user-content-use"' in shown


def test_headings_begin_below_the_title_of_the_page() -> None:
    assert "<h2" in render("# One")
    assert "<h6" in render("###### Six")
    assert "<h1" not in render("One\n===\n\n<h1>raw</h1>")


def test_links_vouch_for_nothing() -> None:
    assert 'rel="nofollow ugc noopener noreferrer"' in render("[a](https://example.org)")


def test_images_come_only_from_here() -> None:
    shown = render(
        "![far](https://example.org/x.png) ![near](near.png)\n\n<img src='//example.org/y.png' alt=raw>", "/a/b/"
    )
    assert "example.org" not in shown
    assert "[image: far]" in shown
    assert '<img src="/a/b/near.png" alt="near">' in shown


def test_relative_links_lead_into_the_repository() -> None:
    shown = render("[f](dir/f.txt) [r](/root) [m](mailto:a@example.org)", "/a/b/resolve/main/")
    assert 'href="/a/b/resolve/main/dir/f.txt"' in shown
    assert 'href="/root"' in shown
    assert 'href="mailto:a@example.org"' in shown


def test_code_is_coloured_by_class_alone() -> None:
    shown = render("```python\ndef f(): pass\n```\n\n```nonsense\n<b>\n```")
    assert '<span class="k">def</span>' in shown
    assert "style" not in shown
    assert "&lt;b&gt;" in shown


def test_tables_are_shown() -> None:
    assert "<td>1</td>" in render("|a|\n|-|\n|1|")


def test_a_card_past_the_size_is_shown_as_written() -> None:
    shown = render("<b>x</b>" * 50_000)
    assert "too long" in shown
    assert "<b>" not in shown


def test_a_card_past_the_time_is_shown_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(markdown, "RENDER_S", 0.02)
    shown = render("|" + "a|" * 50 + "\n|" + "-|" * 50 + "\n" + ("|" + "<c|" * 50 + "\n") * 500)
    assert "takes too long" in shown
    assert "&lt;c" in shown


@pytest.mark.parametrize("text", ["[" * 20_000, "*a " * 20_000, "> " * 5000 + "x", "![[" * 10_000, "<" * 50_000])
def test_pathological_text_is_answered_in_time(text: str) -> None:
    start = time.process_time()
    render(text)
    assert time.process_time() - start < markdown.RENDER_S * 2
