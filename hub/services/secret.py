"""The key that signs upload links and Xet tokens: given by the settings, or made once and kept in the data folder."""

import os
import secrets
from contextlib import suppress
from pathlib import Path

from adapterhub.hub.settings import Settings

SECRET_FILE = "secret"  # noqa: S105


def load_or_make(settings: Settings) -> bytes:
    """The service's secret, at least 32 bytes.

    Two processes that start at once on one folder get the same: the file is made whole under another name and linked
    into place, and whoever comes second reads the first one's.
    """
    if settings.secret is not None:
        return settings.secret.get_secret_value().encode()
    path = settings.data / SECRET_FILE
    with suppress(FileNotFoundError):
        return path.read_bytes()
    fresh = path.with_name(f".{SECRET_FILE}-{secrets.token_hex(8)}")
    write_private(fresh, secrets.token_hex(32))
    try:
        with suppress(FileExistsError):
            os.link(fresh, path)
    finally:
        fresh.unlink()
    return path.read_bytes()


def write_private(path: Path, text: str) -> None:
    """Write `text` to a new file that only this user may read (0600), durably. Raises FileExistsError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
