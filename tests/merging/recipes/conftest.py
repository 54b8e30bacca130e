"""What the comparisons with mergekit share with those of its methods."""

from tests.merging.methods.conftest import stable

__all__ = ["stable"]
