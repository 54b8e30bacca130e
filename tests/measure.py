"""Sizes of functions, files and commits beside where we want them: a diagnosis, never a gate."""

import ast
import statistics
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("hub", "cli", "merging", "storage", "migrations")


def sources(*tops: str) -> Iterator[Path]:
    for top in tops:
        yield from sorted((ROOT / top).rglob("*.py"))


def function_lengths(paths: list[Path]) -> list[tuple[int, str]]:
    """(lines, "file:name") of every function, its docstring left out."""
    lengths = []
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
                lengths.append((lines, f"{path.relative_to(ROOT)}:{node.name}"))
    return sorted(lengths)


def blanket_excepts(paths: list[Path]) -> list[str]:
    found = []
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            caught = node.type if isinstance(node, ast.ExceptHandler) else None
            if isinstance(caught, ast.Name) and caught.id in {"Exception", "BaseException"}:
                found.append(f"{path.relative_to(ROOT)}:{caught.lineno}")
    return found


def commit_sizes() -> list[int]:
    log = subprocess.run(
        ["git", "log", "--shortstat", "--format="], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout
    numbers = [line.split() for line in log.splitlines() if "changed" in line]
    return sorted(
        sum(int(words[i - 1]) for i, w in enumerate(words) if w.startswith(("insert", "delet"))) for words in numbers
    )


def percentile(values: list[int], share: float) -> int:
    return values[min(int(len(values) * share), len(values) - 1)] if values else 0


def main() -> None:
    code, tests = list(sources(*PACKAGES)), list(sources("tests"))
    functions = function_lengths(code)
    lengths = [lines for lines, _ in functions]
    files = sorted(len(path.read_text().splitlines()) for path in code)
    commits = commit_sizes()
    annotated = sum(
        node.returns is not None
        for path in code
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    rows = [
        ("function lines, median", statistics.median(lengths), "<= 10"),
        ("function lines, 90th percentile", percentile(lengths, 0.9), "<= 40"),
        ("file lines, median", statistics.median(files), "~ 100"),
        ("file lines, longest", files[-1], "~ 500"),
        ("source lines", sum(files), ""),
        (
            "test lines per source line",
            round(sum(len(p.read_text().splitlines()) for p in tests) / sum(files), 2),
            "~ 1",
        ),
        ("return types", f"{100 * annotated / len(functions):.0f} %", "100 %"),
        ("blanket excepts", len(blanket_excepts(code)), "<= 3"),
        ("commit lines, median", statistics.median(commits) if commits else 0, "<= 60"),
    ]
    for name, value, wish in rows:
        print(f"{name:34} {value!s:>8}  {wish}")
    print("longest functions:", ", ".join(f"{name} {lines}" for lines, name in functions[-5:]))
    print("blanket excepts:", ", ".join(blanket_excepts(code)) or "none")


if __name__ == "__main__":
    main()
