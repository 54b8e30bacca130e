"""Blobs as objects of any S3: `s3://bucket/prefix`.

    <prefix>/objects/sha256/ab/cd/<64 hex>
    <prefix>/objects/blake3/ab/cd/<64 hex>
    <prefix>/objects/xorb/ab/cd/<64 hex>

Address and credentials are found as boto3 finds them: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_DEFAULT_REGION, or its profile files. A blob is gathered in a local file first, so that its name is known before a
byte is sent; the server compares the SHA-256 of what it got, of the whole or of each part, and `If-None-Match: *` keeps
it from replacing an object.
"""

import hashlib
import re
import tempfile
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from adapterhub.storage.blobs import (
    PIECE_BYTES,
    Backend,
    BlobStat,
    BlobStore,
    Capabilities,
    Hash,
    check_digest,
    check_range,
)
from adapterhub.storage.errors import BlobNotFound, InvalidStoreUrl, StoreUnavailable
from adapterhub.storage.spool import SpoolingWriter, copy_file

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from types_boto3_s3.client import S3Client
    from types_boto3_s3.type_defs import CompletedPartTypeDef

_URL = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(?P<prefix>[A-Za-z0-9!_.*'()/-]*))?")
_BLOB = re.compile(r"(sha256|blake3|xorb)/../../([0-9a-f]{64})")
_PART_BYTES = 16 * 1024 * 1024
_MAX_PARTS = 10_000
_NOT_FOUND, _NO_SUCH_RANGE = 404, 416
_ALREADY_THERE = {409, 412}
"""409: another conditional write of the same key is under way."""


class S3Store:
    """The blobs under one prefix of a bucket. Several processes may share it."""

    capabilities = Capabilities(can_presign=True)

    def __init__(
        self, client: "S3Client", bucket: str, prefix: str, spool: Path, *, part_bytes: int = _PART_BYTES
    ) -> None:
        """spool: folder for blobs on their way. part_bytes: what is larger is sent in parts of at least so many."""
        self._client = client
        self._bucket = bucket
        self._root = f"{prefix.strip('/')}/objects/".lstrip("/")
        self._spool = spool
        self._part_bytes = part_bytes

    def stat(self, digest: str) -> BlobStat | None:
        """Size and age of the blob, None where there is none."""
        key = self._key(digest)
        try:
            with self._translated():
                found = self._client.head_object(Bucket=self._bucket, Key=key)
        except _Refused as refused:
            if refused.status != _NOT_FOUND:
                raise
            return None
        return BlobStat(digest, found["ContentLength"], found["LastModified"].timestamp())

    def read(
        self, digest: str, start: int = 0, end: int | None = None, *, piece_bytes: int = PIECE_BYTES
    ) -> Iterator[bytes]:
        """Bytes [start, end) in pieces; the object is open from the call on."""
        if start < 0 or (end is not None and end <= start):
            # a request cannot say this
            check_range(digest, start, end, self._size(digest))
            return iter(())
        key = self._key(digest)
        wanted = f"bytes={start}-" if end is None else f"bytes={start}-{end - 1}"
        try:
            with self._translated():
                body = self._client.get_object(Bucket=self._bucket, Key=key, Range=wanted)["Body"]
        except _Refused as refused:
            if refused.status == _NOT_FOUND:
                raise BlobNotFound(digest) from None
            if refused.status != _NO_SUCH_RANGE:
                raise
            check_range(digest, start, end, self._size(digest))
            return iter(())  # of an empty blob, every range is empty, and S3 refuses it
        pieces = self._pieces(body, piece_bytes)
        next(pieces)
        return pieces

    def _pieces(self, body: "StreamingBody", piece_bytes: int) -> Iterator[bytes]:
        with self._translated(), closing(body):
            yield b""  # taken by `read`, so that the body is closed even when nobody reads on
            while piece := body.read(piece_bytes):
                yield piece

    def _size(self, digest: str) -> int:
        found = self.stat(digest)
        if found is None:
            raise BlobNotFound(digest)
        return found.size_bytes

    def writer(self, *, limit_bytes: int | None = None, made: Hash | None = None) -> SpoolingWriter:
        """A writer for one new blob."""
        return SpoolingWriter(self._spool, self._publish, limit_bytes=limit_bytes, made=made, durable=False)

    def put_file(self, path: Path, *, expected: str | None = None) -> BlobStat:
        """Store the file's content; a copy of it is sent, so that it may change meanwhile."""
        return copy_file(self, path, expected)

    def path(self, digest: str) -> None:
        """None: objects are not files. Raises BlobNotFound."""
        if self.stat(digest) is None:
            raise BlobNotFound(digest)

    def presign(self, digest: str, *, filename: str, expires_s: int) -> str:
        """A URL that downloads the blob as `filename`. Made here, without asking the server."""
        plain = re.sub(r"[^\w.-]", "_", filename, flags=re.ASCII)
        params = {
            "Bucket": self._bucket,
            "Key": self._key(digest),
            # RFC 6266: the plain name for old clients, the exact one for the others
            "ResponseContentDisposition": f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, '')}",
            "ResponseContentType": "application/octet-stream",
        }
        return self._client.generate_presigned_url("get_object", Params=params, ExpiresIn=expires_s)

    def delete(self, digest: str) -> None:
        """Remove the blob; nothing happens where there is none."""
        with self._translated():
            self._client.delete_object(Bucket=self._bucket, Key=self._key(digest))

    def list(self) -> Iterator[BlobStat]:
        """Every blob, in order of digest."""
        with self._translated():
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._root)
            for found in (found for page in pages for found in page.get("Contents", [])):
                key = _BLOB.fullmatch(found["Key"].removeprefix(self._root))
                if key:
                    yield BlobStat(":".join(key.groups()), found["Size"], found["LastModified"].timestamp())

    def _key(self, digest: str) -> str:
        algorithm, _, name = check_digest(digest).partition(":")
        return f"{self._root}{algorithm}/{name[:2]}/{name[2:4]}/{name}"

    def _publish(self, spooled: Path, digest: str, size_bytes: int) -> BlobStat:
        found = self.stat(digest)
        if found is None:
            try:
                with self._translated():
                    self._put(spooled, digest, size_bytes)
            except _Refused as refused:
                if refused.status not in _ALREADY_THERE:
                    raise
            found = self.stat(digest)
        if found is None or found.size_bytes != size_bytes:
            held = "nothing" if found is None else f"{found.size_bytes} bytes"
            raise StoreUnavailable(f"s3://{self._bucket}/{self._key(digest)} holds {held}, not the {size_bytes} sent")
        return found

    def _put(self, spooled: Path, digest: str, size_bytes: int) -> None:
        if size_bytes > self._part_bytes:
            self._put_parts(spooled, digest, size_bytes)
        else:
            self._put_whole(spooled, digest)

    def _put_whole(self, spooled: Path, digest: str) -> None:
        algorithm, _, name = digest.partition(":")
        with spooled.open("rb") as file:
            # the one checksum that every S3 knows and that is a name here
            found = bytes.fromhex(name) if algorithm == "sha256" else hashlib.file_digest(file, "sha256").digest()
            checksum = b64encode(found).decode()
            file.seek(0)
            self._client.put_object(
                Bucket=self._bucket, Key=self._key(digest), Body=file, ChecksumSHA256=checksum, IfNoneMatch="*"
            )

    def _put_parts(self, spooled: Path, digest: str, size_bytes: int) -> None:
        target: Any = {"Bucket": self._bucket, "Key": self._key(digest)}
        started = self._client.create_multipart_upload(**target, ChecksumAlgorithm="SHA256")
        target["UploadId"] = started["UploadId"]
        try:
            with spooled.open("rb") as file:
                part_bytes = max(self._part_bytes, -(-size_bytes // _MAX_PARTS))
                parts: list[CompletedPartTypeDef] = []
                while piece := file.read(part_bytes):
                    checksum = b64encode(hashlib.sha256(piece).digest()).decode()
                    number = len(parts) + 1
                    sent = self._client.upload_part(**target, PartNumber=number, Body=piece, ChecksumSHA256=checksum)
                    parts.append({"PartNumber": number, "ETag": sent["ETag"], "ChecksumSHA256": checksum})
            self._client.complete_multipart_upload(**target, MultipartUpload={"Parts": parts}, IfNoneMatch="*")
        except BaseException:
            # parts of an upload that never ends would be paid for, and no listing shows them
            self._client.abort_multipart_upload(**target)
            raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn boto's errors into StoreUnavailable."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            raise _Refused(f"s3://{self._bucket}: {error}", status) from error
        except BotoCoreError as error:
            raise StoreUnavailable(f"s3://{self._bucket}: {error}") from error


class _Refused(StoreUnavailable):
    """The server answered, and not as hoped; status: of the HTTP answer."""

    def __init__(self, message: str, status: int | None) -> None:
        super().__init__(message)
        self.status = status


def _open(url: str, spool: Path | None) -> BlobStore:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    parts = _URL.fullmatch(url)
    if parts is None:
        raise InvalidStoreUrl(url, (_EXAMPLE,))
    config = Config(
        # boto3 presigns by the old scheme for servers other than Amazon's
        signature_version="s3v4",
        # every upload names its SHA-256; a second checksum would come as a trailer that not every server reads
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"mode": "standard", "total_max_attempts": 4},
        connect_timeout=5,
        read_timeout=60,
        max_pool_connections=64,
    )
    try:
        # a session of its own: boto3's common one keeps the first credentials it ever found
        client = boto3.Session().client("s3", config=config)
    except (BotoCoreError, ValueError) as error:
        raise StoreUnavailable(f"{url}: {error}") from error
    folder = spool or Path(tempfile.gettempdir())
    return S3Store(client, parts["bucket"], parts["prefix"] or "", folder)


_EXAMPLE = "s3://bucket/prefix"
BACKEND = Backend(scheme="s3", example=_EXAMPLE, open=_open)
