"""s3: a prefix of a bucket, read as streams."""

from __future__ import annotations

from adapterhub.cli.bucket import BucketTree
from adapterhub.cli.source import SourceKind, Wishes
from adapterhub.cli.trees import TreeSource


def open_bucket(place: str, wishes: Wishes) -> TreeSource:
    """The prefix as a tree. Raises Misused, and SourceFailed where no credentials or region are found."""
    return TreeSource(BucketTree(place), wishes)


SPEC = SourceKind("s3", "A prefix of an S3 bucket", "s3://BUCKET/PREFIX", open_bucket)
