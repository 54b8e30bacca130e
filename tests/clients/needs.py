"""How a scenario tells that the client it runs with is too old for it: its test is skipped with that reason."""

import sys

LACKS = "lacks: "


def needs(*methods: str) -> None:
    """End this scenario, with the reason, where HfApi has not all those methods."""
    import huggingface_hub

    missing = [name for name in methods if not hasattr(huggingface_hub.HfApi, name)]
    if missing:
        print(f"{LACKS}huggingface_hub {huggingface_hub.__version__} has no {', '.join(missing)}")  # noqa: T201
        sys.exit(0)
