"""Which files are pickles, by their names: every part of the hub that shows, refuses or converts them asks here."""

SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")
"""Ends of the names under which people store pickles, which run code where they are loaded with trust."""


def is_pickle(name: str) -> bool:
    """Whether a file of that name is to be taken for a pickle."""
    return name.lower().endswith(SUFFIXES)
