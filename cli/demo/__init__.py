"""`adapterhub demo`: trains small models and patches, then shows with them everything the hub does.

A package: nothing is imported with it, torch least of all.
"""

from pathlib import Path

PACKAGES = ("openai", "sklearn")
"""What the extra `demo` installs."""


def run(keep: bool, data: Path | None, fast: bool) -> None:
    """The whole demo, told on stdout.

    keep: whether the server is left running. data: folder for all that is made; None makes a temporary one, which
    stays, so that what was made can be browsed. fast: a small version for tests. Raises DemoFailed when a part fails or
    a package is missing.
    """
    import tempfile
    from importlib.util import find_spec

    from adapterhub.cli.demo import story
    from adapterhub.cli.demo.errors import DemoFailed

    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise DemoFailed(f"the demo needs {' and '.join(missing)}; install them with: pip install 'adapterhub[demo]'")
    story.run(keep, data or Path(tempfile.mkdtemp(prefix="adapterhub-demo-")), fast)
