"""Who may load what: the static rules of `make lint` do not prove it, so here the interpreter is asked."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "transformers", "peft", "sklearn")


def loaded_after(code: str, cwd: Path = ROOT) -> set[str]:
    program = f"import sys\n{code}\nprint('\\n'.join(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=cwd, check=True)
    return {line.split(".")[0] for line in done.stdout.splitlines()}


def test_help_loads_no_torch() -> None:
    code = (
        "from adapterhub.cli.main import main\n"
        "sys.argv = ['adapterhub', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass"
    )
    assert not loaded_after(code).intersection(HEAVY)


def test_the_web_application_loads_no_torch() -> None:
    assert not loaded_after("import adapterhub.hub.app, adapterhub.hub.start").intersection(HEAVY)


@pytest.mark.parametrize("package", ["hub", "cli", "merging", "storage", "migrations"])
def test_bare_package_names_are_refused_with_one_sentence(package: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"import {package}"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert f"import adapterhub.{package}" in done.stderr.splitlines()[-1]


def test_importing_merging_registries_lists_variants_without_torch() -> None:
    code = (
        "from adapterhub.merging import methods, patches, terms, transfer\n"
        "assert methods.methods() and patches.kinds() and terms.terms() and transfer.strategies()"
    )
    assert "torch" not in loaded_after(code)


def test_every_declared_dependency_is_imported_somewhere() -> None:
    """A dependency nobody imports is a cost without a use."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module_of = {
        "python-multipart": "multipart",
        "pyyaml": "yaml",
        "markdown-it-py": "markdown_it",
        "pillow": "PIL",
        "scikit-learn": "sklearn",
    }
    # loaded by starlette for forms, by transformers, by uvicorn, and by the demo and the tests
    indirect = {"python-multipart", "pillow", "safetensors", "peft", "httptools", "uvloop"}
    sources = "\n".join(
        path.read_text()
        for top in ("hub", "cli", "merging", "storage", "migrations")
        for path in (ROOT / top).rglob("*.py")
    )
    unused = []
    for requirement in project["dependencies"]:
        name = re.split(r"[<>=\[ ;]", requirement)[0]
        module = module_of.get(name, name.replace("-", "_"))
        if name not in indirect and not re.search(rf"^\s*(import|from) {module}\b", sources, re.M):
            unused.append(name)
    assert unused == []
