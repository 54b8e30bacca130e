"""Claims that leave the service and come back unchanged: upload links and Xet tokens.

A sealed text is base64url(JSON) + "." + base64url(HMAC-SHA256), keyed by the service's secret and a purpose, so that a
seal made for one thing opens no other.
"""

import base64
import binascii
import hashlib
import hmac
import json
import time
from typing import Any

from adapterhub.hub.errors import InvalidToken


def seal(secret: bytes, purpose: str, claims: dict[str, Any], ttl_s: int) -> str:
    """`claims` as one URL-safe word that `unseal` accepts for `ttl_s` seconds."""
    body = _encode(json.dumps({**claims, "exp": int(time.time()) + ttl_s}, separators=(",", ":")).encode())
    return f"{body}.{_encode(_mac(secret, purpose, body))}"


def unseal(secret: bytes, purpose: str, sealed: str) -> dict[str, Any]:
    """The claims in `sealed`. Raises InvalidToken when it was not sealed here for `purpose`, or has expired."""
    body, _, mac = sealed.partition(".")
    try:
        genuine = hmac.compare_digest(_decode(mac), _mac(secret, purpose, body))
        claims = json.loads(_decode(body)) if genuine else None
    except (binascii.Error, ValueError):
        claims = None
    if not isinstance(claims, dict):
        raise InvalidToken(f"this {purpose} was not issued by this server; ask for another")
    if claims["exp"] < time.time():
        raise InvalidToken(f"this {purpose} has expired; ask for another")
    return claims


def _mac(secret: bytes, purpose: str, body: str) -> bytes:
    return hmac.digest(secret, f"{purpose}\0{body}".encode(), hashlib.sha256)


def _encode(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text.encode() + b"=" * (-len(text) % 4))
