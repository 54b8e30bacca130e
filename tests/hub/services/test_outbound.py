"""Where the service may go: checked by property, and against real servers on this machine."""

import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.hub.errors import InvalidRequest, OutboundFailed, OutboundRefused
from adapterhub.hub.services import outbound
from adapterhub.hub.services.outbound import Allowed, is_public
from adapterhub.hub.services.wiring import open_hub
from adapterhub.hub.settings import Settings

PRIVATE = [
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.2.0/24"),
    *("192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4"),
]


def private_v4() -> st.SearchStrategy[IPv4Address]:
    return st.sampled_from(PRIVATE).flatmap(lambda text: st.ip_addresses(network=text))  # type: ignore[arg-type, return-value]


@given(private_v4())
def test_no_private_address_is_public_in_any_disguise(address: IPv4Address) -> None:
    number = int(address)
    assert not is_public(str(address))
    assert not is_public(str(IPv6Address((0xFFFF << 32) | number)))  # mapped
    assert not is_public(str(IPv6Address((0x2002 << 112) | (number << 80))))  # 6to4
    assert not is_public(str(IPv6Address((0x64FF9B << 96) | number)))  # NAT64


@given(st.ip_addresses(v=6))
def test_only_global_unicast_is_public_in_version_6(address: IPv6Address) -> None:
    if is_public(str(address)):
        assert address in ip_network("2000::/3") or address in ip_network("64:ff9b::/96") or address.ipv4_mapped


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", ["::1", "::", "fe80::1%eth0", "fd00::1", "ff02::1", "2001:db8::1"])
def test_addresses_of_one_network_are_not(address: str) -> None:
    assert not is_public(address)


@contextmanager
def serving(answer: Callable[[BaseHTTPRequestHandler], None], tls: SSLContext | None = None) -> Iterator[int]:
    """The port of a server that answers every request so."""

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            answer(self)

        do_GET = do_POST = do_HEAD = handle_any  # noqa: N815  the library's names

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def reply(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def echo(handler: BaseHTTPRequestHandler) -> None:
    """The request's line and headers, its names in lower case."""
    lines = [f"{handler.command} {handler.path}", *(f"{k.lower()}: {v}" for k, v in handler.headers.items())]
    reply(handler, 200, "\n".join(lines).encode())


def local(allow: str) -> Settings:
    return Settings(outbound_allow=allow)


def fetch(settings: Settings, url: str, method: str = "GET", **options: object) -> tuple[int, str]:
    with outbound.request(settings, method, url, limit_bytes=10_000, **options) as response:  # type: ignore[arg-type]
        return response.status, response.read().decode()


def at_home(host: str, port: int) -> Sequence[str]:
    return ["127.0.0.1"]


def test_this_machine_is_refused_and_the_refusal_says_how_to_allow_it() -> None:
    for url in (
        "http://127.0.0.1:9/x",
        "http://localhost:9",
        "http://[::1]:9",
        "http://2130706433:9",
        "http://127.1:9",
    ):
        with pytest.raises(OutboundRefused, match=r"no public address.*ADAPTERHUB_OUTBOUND_ALLOW="):
            fetch(local(""), url)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "gopher://x", "http://", "ftp://x/y", "s3://b/k", "http://a\r\nb", "//x", "nothing"]
)
def test_what_is_no_web_address_is_refused(url: str) -> None:
    with pytest.raises(OutboundRefused):
        fetch(local(""), url)


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(OutboundRefused, match="name or password") as refused:
        fetch(local(""), "http://ann:hidden@example.com/")
    assert "hidden" not in str(refused.value)


def test_a_name_is_resolved_once_and_keeps_its_host() -> None:
    asked = []

    def resolve(host: str, port: int) -> Sequence[str]:
        asked.append((host, port))
        return ["127.0.0.1"] if len(asked) == 1 else ["10.0.0.1"]

    with serving(echo) as port:
        _, text = fetch(local(f"hub.test:{port}"), f"http://hub.test:{port}/a?b", resolve=resolve)
        assert asked == [("hub.test", port)]
    assert text.startswith("GET /a?b\n")
    assert f"host: hub.test:{port}" in text
    assert "accept-encoding: identity" in text


def test_one_private_address_among_several_spoils_a_name() -> None:
    with pytest.raises(OutboundRefused, match=r"hub\.test is 10\.0\.0\.1"):
        fetch(local(""), "http://hub.test", resolve=lambda host, port: ["8.8.8.8", "10.0.0.1"])


def test_a_redirect_is_checked_like_the_first_address() -> None:
    with (
        serving(lambda handler: reply(handler, 302, Location="http://10.0.0.1/secret")) as port,
        pytest.raises(OutboundRefused, match=r"10\.0\.0\.1"),
    ):
        fetch(local("127.0.0.1"), f"http://127.0.0.1:{port}/")


def test_credentials_stay_with_the_first_origin() -> None:
    sent = {"Authorization": "Bearer upstream", "Range": "bytes=1-", "X-Webhook-Secret": "s"}
    with serving(echo) as other, serving(lambda h: reply(h, 307, Location=f"http://127.0.0.1:{other}/b")) as port:
        _, text = fetch(local("127.0.0.1"), f"http://127.0.0.1:{port}/a", headers=sent)
    assert "range: bytes=1-" in text
    assert "upstream" not in text
    assert "x-webhook-secret" not in text
    with serving(lambda h: echo(h) if h.path == "/b" else reply(h, 307, Location="/b")) as port:
        assert "Bearer upstream" in fetch(local("127.0.0.1"), f"http://127.0.0.1:{port}/a", headers=sent)[1]


def test_a_posted_body_is_not_sent_on_by_a_redirect_that_says_get() -> None:
    with serving(lambda h: echo(h) if h.path == "/b" else reply(h, 303, Location="/b")) as port:
        status, text = fetch(local("127.0.0.1"), f"http://127.0.0.1:{port}/a", "POST", content=b"body")
    assert (status, text.partition("\n")[0]) == (200, "GET /b")


def test_redirects_end() -> None:
    with serving(lambda handler: reply(handler, 302, Location=handler.path + "x")) as port:
        assert fetch(local("127.0.0.1"), f"http://127.0.0.1:{port}/")[0] == 302
        with outbound.request(
            local("127.0.0.1"), "GET", f"http://127.0.0.1:{port}/", limit_bytes=0, redirects=2
        ) as response:
            assert response.url.endswith("/xx")


def test_more_bytes_than_the_limit_are_not_taken() -> None:
    with (
        serving(lambda handler: reply(handler, 200, b"x" * 20_000)) as port,
        pytest.raises(OutboundFailed, match="more than the 10000 bytes"),
    ):
        fetch(local("127.0.0.1"), f"http://127.0.0.1:{port}/")


def test_who_does_not_answer_is_named() -> None:
    with serving(echo) as port:
        pass
    with pytest.raises(OutboundFailed, match=f"127.0.0.1:{port}"):
        fetch(local("127.0.0.1"), f"http://127.0.0.1:{port}/")
    with pytest.raises(OutboundFailed, match="no such host"):
        fetch(local(""), "http://no-such-host.invalid/")


def test_the_certificate_is_the_names_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "cert")]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=hub.test"]
    subprocess.run([*made, "-addext", "subjectAltName=DNS:hub.test", *files], check=True, capture_output=True)
    tls = SSLContext(PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert"))
    with serving(echo, tls) as port:
        assert fetch(local("hub.test"), f"https://hub.test:{port}/", resolve=at_home)[0] == 200
        with pytest.raises(OutboundFailed, match="certificate"):
            fetch(local("other.test"), f"https://other.test:{port}/", resolve=at_home)


def test_an_allowance_is_a_name_a_port_of_it_or_a_network() -> None:
    followed = Allowed.parse("a, b:80 ,10.0.0.0/8")
    assert followed.holds_for("A", 1, "1.1.1.1")
    assert followed.holds_for("b", 80, "1.1.1.1")
    assert not followed.holds_for("b", 81, "1.1.1.1")
    assert followed.holds_for("c", 9, "10.1.2.3")


def test_an_allowance_that_makes_no_sense_ends_the_start(tmp_path: Path) -> None:
    for text in ("10.0.0.1/8", "user@host", "a b"):
        with pytest.raises(InvalidRequest, match="ADAPTERHUB_OUTBOUND_ALLOW"):
            open_hub(Settings(data=tmp_path, outbound_allow=text))
