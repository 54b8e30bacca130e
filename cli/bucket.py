"""A prefix of an S3 bucket as a tree; address and credentials are found as boto3 finds them (AWS_ENDPOINT_URL, ...).

Objects are read as streams, twice where their digest is not known yet: nothing is kept on disk. Names that end in "/"
stand for folders and hold nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from adapterhub.cli.errors import Missing, Misused
from adapterhub.cli.source import PIECE_BYTES, Skipped, SourceFailed
from adapterhub.cli.trees import Leaf, reason_to_skip
from adapterhub.merging.folders import is_inside

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client


class BucketTree:
    """The objects below a prefix, as files."""

    def __init__(self, place: str) -> None:
        bucket, _, prefix = place.removeprefix("//").partition("/")
        if not place.startswith("//") or not bucket:
            raise Misused(f"s3:{place}: write s3://BUCKET or s3://BUCKET/PREFIX")
        self._bucket = bucket
        self._prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        self.label = f"s3://{bucket}/{self._prefix}".rstrip("/")
        self.name = self.label.rpartition("/")[2]
        with self._translated():
            self._client = _connect()

    def leaves(self) -> tuple[Sequence[Leaf], Sequence[Skipped]]:
        leaves: list[Leaf] = []
        skipped: list[Skipped] = []
        with self._translated():
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix)
            for found in (one for page in pages for one in page.get("Contents", [])):
                path = found["Key"].removeprefix(self._prefix)
                if path.endswith("/") or not path:
                    continue
                reason = reason_to_skip(path) if is_inside(path) else "its name is no path of a file"
                if reason:
                    skipped.append(Skipped(path, reason))
                else:
                    leaves.append(Leaf(path, found["Size"], found["ETag"]))
        return leaves, skipped

    def read(self, path: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        wanted = f"bytes={start}-{'' if end is None else end - 1}"
        with self._translated():
            key = self._prefix + path
            if start == 0 and end is None:
                body = self._client.get_object(Bucket=self._bucket, Key=key)["Body"]
            else:
                body = self._client.get_object(Bucket=self._bucket, Key=key, Range=wanted)["Body"]
            try:
                yield from body.iter_chunks(PIECE_BYTES)
            finally:
                body.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as error:
            told = error.response.get("Error", {})
            if told.get("Code") in ("NoSuchBucket", "NoSuchKey", "404"):
                raise Missing(f"{self.label}: {told.get('Message') or 'not found'}") from error
            raise SourceFailed(f"{self.label}: {told.get('Message') or error}") from error
        except BotoCoreError as error:
            raise SourceFailed(f"{self.label}: {error}") from error


def _connect() -> S3Client:
    import boto3
    from botocore.config import Config

    config = Config(signature_version="s3v4", retries={"mode": "standard", "total_max_attempts": 5})
    client: S3Client = boto3.session.Session().client("s3", config=config)
    return client
