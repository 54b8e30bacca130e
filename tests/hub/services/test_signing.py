import pytest

from adapterhub.hub.errors import InvalidToken
from adapterhub.hub.services.signing import seal, unseal

SECRET = b"s" * 32


def test_what_was_sealed_comes_back() -> None:
    sealed = seal(SECRET, "upload link", {"digest": "sha256:0", "size": 3}, ttl_s=60)
    claims = unseal(SECRET, "upload link", sealed)
    assert (claims["digest"], claims["size"]) == ("sha256:0", 3)


def test_a_seal_opens_only_its_own_purpose_and_server() -> None:
    sealed = seal(SECRET, "upload link", {}, ttl_s=60)
    for secret, purpose in ((SECRET, "xet token"), (b"t" * 32, "upload link")):
        with pytest.raises(InvalidToken, match="not issued"):
            unseal(secret, purpose, sealed)


def test_an_expired_seal_is_refused() -> None:
    with pytest.raises(InvalidToken, match="expired"):
        unseal(SECRET, "upload link", seal(SECRET, "upload link", {}, ttl_s=-1))


@pytest.mark.parametrize("sealed", ["", ".", "abc", "a.b.c", "é.é", "eyJhIjoxfQ." + "A" * 43, "x" * 10_000])
def test_anything_else_is_refused(sealed: str) -> None:
    with pytest.raises(InvalidToken):
        unseal(SECRET, "upload link", sealed)


def test_a_changed_claim_is_refused() -> None:
    body, _, mac = seal(SECRET, "upload link", {"size": 3}, ttl_s=60).partition(".")
    with pytest.raises(InvalidToken):
        unseal(SECRET, "upload link", f"{body[:-2]}AA.{mac}")
