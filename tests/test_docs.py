"""The docs follow the code: generated pages are as the code makes them, and files that are named exist."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from adapterhub.cli.main import build
from adapterhub.cli.sources import kinds
from adapterhub.hub.settings import Settings
from adapterhub.merging import decoding, methods, patches, terms, transfer
from adapterhub.merging.folders import LocalFolder
from adapterhub.merging.recipes.expression import parse
from adapterhub.storage.stores import known_backends
from tests.merging.exactness import table
from tests.merging.methods import table as merge_table

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_generated_pages_are_as_the_code_makes_them(generate: ModuleType) -> None:
    for name, text in generate.pages().items():
        assert (DOCS / name).read_text() == text, f"{name} is behind the code: run `python docs/generate.py`"


def test_every_variant_and_setting_has_its_heading() -> None:
    text = "\n".join(path.read_text() for path in DOCS.glob("*.md"))
    headings = set(re.findall(r"^#+ (.+)$", text, re.M))
    named = [
        *methods.methods(),
        *decoding.operators(),
        *patches.kinds(),
        *terms.terms(),
        *transfer.strategies(),
        *known_backends(),
    ]
    named += [f"ADAPTERHUB_{name.upper()}" for name in Settings.model_fields]
    assert [name for name in named if name not in headings] == []


def test_the_page_of_merge_methods_is_what_they_say_of_themselves() -> None:
    assert merge_table.behind() == []
    headings = set(re.findall(r"^### (.+)$", (DOCS / "merge-methods.md").read_text(), re.M))
    assert headings == set(methods.methods())


def test_the_page_of_expressions_writes_each_operator_as_it_says_itself() -> None:
    text = (DOCS / "expressions.md").read_text()
    assert [one.name for one in decoding.operators().values() if f"### {one.name}\n\n`{one.usage}`" not in text] == []


def test_the_page_of_kinds_lists_those_that_are_there() -> None:
    assert table.behind() == []


def test_each_claim_of_the_page_of_kinds_needs_its_measurement() -> None:
    """`make kinds` and .ci/run fail where a test that proved a claim is gone."""
    claims = {f"{name} {claim}" for name, claim in table.unproved({})}
    assert {"lora folds", "lora writes", "gguf converts to lora", "oft converts to dense", "alora runs"} <= claims
    told = '{"kind": "gguf", "architecture": "x", "dtype": "float32", "oracle": "y", "error": 0, "what": "as a LoRA"}'
    left = {f"{name} {claim}" for name, claim in table.unproved(table.read([told])[0])}
    assert claims - left == {"gguf converts to lora"}


def test_every_expression_in_the_docs_parses() -> None:
    block = re.search(r"```\n(.*?)```", (DOCS / "expressions.md").read_text(), re.S)
    assert block is not None
    for line in block[1].splitlines():
        assert parse(line).references(), line


def test_the_example_of_the_patch_format_runs(tmp_path: Path) -> None:
    code = re.search(r"```python\n(.*?)```", (DOCS / "patch-format.md").read_text(), re.S)
    assert code is not None
    subprocess.run([sys.executable, "-c", code[1]], cwd=tmp_path, check=True, timeout=60)
    [found] = patches.inspect(LocalFolder(tmp_path))
    assert (found.kind, found.problems) == ("sparse", ())


@pytest.mark.slow
def test_the_examples_of_training_run_one_after_the_other(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "training.md").read_text(), re.S)
    subprocess.run([sys.executable, "-c", "\n".join(blocks)], cwd=tmp_path, check=True, timeout=120)
    found = {one.path: one.kind for one in patches.inspect(LocalFolder(tmp_path)) if one.kind != "model"}
    helpers = ["sparse", "dense", "mask", "seeded", "trajectory"]
    assert sorted(found.values()) == sorted(helpers)


@pytest.mark.parametrize("name", ["ARCHITECTURE.md", "STYLE.md", "CONTRIBUTING.md", "README.md"])
def test_files_that_a_text_names_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    examples = {"docs/decisions/NNNN-title.md"}
    named = set(re.findall(r"`((?:[\w.-]+/)+[\w.-]*\.(?:py|md|toml|txt)|[A-Z]+\.md)", text)) - examples
    missing = [one for one in named if not any((ROOT / top / one).exists() for top in ("", "merging", "hub", "docs"))]
    assert missing == []


def test_the_tree_in_the_architecture_is_the_tree() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    tree = text[text.index("## Tree") :].split("```")[1]
    folder = ""
    for line in tree.splitlines()[2:]:
        entry = line[:22].rstrip()
        if entry and not entry.startswith(" "):
            folder = entry.split()[0]
            assert (ROOT / folder).is_dir(), folder
        for word in entry.split() if entry.startswith(" ") else ():
            assert (ROOT / folder / word).exists(), f"{folder}{word}"


def test_every_command_in_the_page_on_moving_is_one() -> None:
    command: Any = typer.main.get_command(build())
    lines = re.findall(r"^adapterhub (.+?)(?: +#.*)?$", (DOCS / "moving.md").read_text(), re.M)
    assert len(lines) > 10
    for line in lines:
        name, *arguments = shlex.split(line)
        command.commands[name].make_context(name, arguments, resilient_parsing=False)


def test_every_kind_of_source_is_told_in_the_page_on_moving() -> None:
    text = (DOCS / "moving.md").read_text()
    assert [
        one.name for one in kinds().values() if not re.search(rf"adapterhub import [\"]?{one.name}[: ]", text)
    ] == []
