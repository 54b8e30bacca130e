"""Texts that rest in the database and only this service reads back: webhook secrets, tokens for other hubs.

Fernet (AES-128-CBC with HMAC-SHA256) under a key that HKDF derives from the service's secret for one purpose, so that
what was sealed for one thing opens nowhere else. Whoever copies the database alone learns nothing.
"""

import base64

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from adapterhub.hub.errors import SealBroken


def encrypt(secret: bytes, purpose: str, text: str) -> str:
    """`text`, readable by `decrypt` with the same secret and purpose alone; another word each time."""
    return _cipher(secret, purpose).encrypt(text.encode()).decode()


def decrypt(secret: bytes, purpose: str, sealed: str) -> str:
    """The text in `sealed`. Raises SealBroken when it was sealed under another secret or purpose, or changed."""
    try:
        return _cipher(secret, purpose).decrypt(sealed.encode()).decode()
    except InvalidToken:
        raise SealBroken(
            f"the {purpose} was kept under another ADAPTERHUB_SECRET than the present one; enter it again"
        ) from None


def _cipher(secret: bytes, purpose: str) -> Fernet:
    key = HKDF(SHA256(), length=32, salt=None, info=f"adapterhub {purpose}".encode()).derive(secret)
    return Fernet(base64.urlsafe_b64encode(key))
