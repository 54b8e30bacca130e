"""What only S3 has: parts, presigned addresses, and a server that may be away or say no."""

import hashlib
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import pytest
from botocore.config import Config

from adapterhub.storage.backends.s3 import S3Store
from adapterhub.storage.blobs import digest_of
from adapterhub.storage.errors import InvalidStoreUrl, StoreUnavailable
from adapterhub.storage.stores import open_store
from tests.servers import S3Bucket

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client

LARGE = hashlib.shake_128(b"parts").digest(11 << 20)
ONCE = Config(signature_version="s3v4", retries={"total_max_attempts": 1}, connect_timeout=2)

pytestmark = pytest.mark.s3


@pytest.fixture
def client(s3_bucket: S3Bucket) -> Iterator["S3Client"]:
    client = boto3.client("s3", config=ONCE)
    yield client
    client.close()


@pytest.fixture
def store(client: "S3Client", s3_bucket: S3Bucket, tmp_path: Path) -> S3Store:
    """A store whose parts are the least that S3 takes."""
    (tmp_path / "spool").mkdir()
    return S3Store(client, s3_bucket.bucket, s3_bucket.prefix, tmp_path / "spool", part_bytes=5 << 20)


def put(store: S3Store, content: bytes) -> None:
    with store.writer() as writer:
        writer.write(content)
        writer.commit(digest_of(content))


def test_a_large_blob_goes_in_parts_and_leaves_no_upload_open(
    store: S3Store, client: "S3Client", s3_bucket: S3Bucket, tmp_path: Path
) -> None:
    put(store, LARGE)
    assert b"".join(store.read(digest_of(LARGE))) == LARGE
    [found] = store.list()
    assert found.size_bytes == len(LARGE)
    key = f"{s3_bucket.prefix}/objects/sha256/"
    assert client.list_multipart_uploads(Bucket=s3_bucket.bucket, Prefix=key).get("Uploads", []) == []
    assert list((tmp_path / "spool").iterdir()) == []


def test_two_uploads_in_parts_of_one_blob_both_succeed(store: S3Store, client: "S3Client", s3_bucket: S3Bucket) -> None:
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(put, store, LARGE) for _ in range(2)]:
            done.result()
    assert b"".join(store.read(digest_of(LARGE), 5 << 20)) == LARGE[5 << 20 :]
    uploads = client.list_multipart_uploads(Bucket=s3_bucket.bucket, Prefix=s3_bucket.prefix)
    assert uploads.get("Uploads", []) == []


def test_an_upload_in_parts_that_fails_is_called_off(
    store: S3Store, client: "S3Client", s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(BaseException):
        """As when the process is asked to stop."""

    def interrupt(**_: object) -> None:
        raise Interrupted

    monkeypatch.setattr(client, "complete_multipart_upload", interrupt)
    with pytest.raises(Interrupted):
        put(store, LARGE)
    assert store.stat(digest_of(LARGE)) is None
    uploads = client.list_multipart_uploads(Bucket=s3_bucket.bucket, Prefix=s3_bucket.prefix)
    assert uploads.get("Uploads", []) == []


def test_an_object_that_is_not_the_blob_is_never_replaced(
    store: S3Store, client: "S3Client", s3_bucket: S3Bucket
) -> None:
    name = digest_of(b"the blob").removeprefix("sha256:")
    key = f"{s3_bucket.prefix}/objects/sha256/{name[:2]}/{name[2:4]}/{name}"
    client.put_object(Bucket=s3_bucket.bucket, Key=key, Body=b"damaged")
    with pytest.raises(StoreUnavailable, match="holds 7 bytes, not the 8"):
        put(store, b"the blob")


def test_a_presigned_address_needs_no_credentials_and_ends(store: S3Store) -> None:
    put(store, b"weights")
    url = store.presign(digest_of(b"weights"), filename='größe "1".safetensors', expires_s=60)
    with urllib.request.urlopen(url) as answer:
        assert answer.read() == b"weights"
        disposition = answer.headers["Content-Disposition"]
    assert disposition.startswith('attachment; filename="gr__e__1_.safetensors"')
    assert disposition.endswith("filename*=UTF-8''gr%C3%B6%C3%9Fe%20%221%22.safetensors")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(url.replace("X-Amz-Expires=60", "X-Amz-Expires=61"))


def test_wrong_credentials_are_said_to_be_refused(
    s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not the one")
    store = open_store(s3_bucket.url, spool=tmp_path)
    with pytest.raises(StoreUnavailable, match="SignatureDoesNotMatch"):
        list(store.list())
    with pytest.raises(StoreUnavailable, match="403"):
        store.stat(digest_of(b""))


def test_a_server_that_is_away_is_named(s3_bucket: S3Bucket, tmp_path: Path) -> None:
    nobody = boto3.client("s3", endpoint_url="http://127.0.0.1:9", config=ONCE)
    store = S3Store(nobody, s3_bucket.bucket, "", tmp_path)
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:9"):
        store.stat(digest_of(b""))
    with store.writer() as writer, pytest.raises(StoreUnavailable):
        writer.commit()


@pytest.mark.parametrize(
    "url", ["s3://", "s3:///prefix", "s3://UPPER/x", "s3://bucket/a?b", "s3://bucket/a b", "s3://b/x"]
)
def test_a_url_without_a_bucket_is_refused(url: str) -> None:
    with pytest.raises(InvalidStoreUrl, match="s3://bucket/prefix"):
        open_store(url)
