"""The service's one way out: every request to a machine that somebody named in a request or a setting is made here.

A name is resolved once, each of its addresses is checked, and the connection goes to the one that was checked, under
the name's own Host and certificate: what the name means a moment later changes nothing. Each redirect is checked like
the first address. Proxies of the environment are not used, since they would resolve the name anew.
"""

import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

import httpx

from adapterhub import __version__
from adapterhub.hub.errors import OutboundFailed, OutboundRefused
from adapterhub.hub.settings import Settings

CONNECT_S = 5.0
REDIRECTS = 3
PORTS: Mapping[str, int] = {"http": 80, "https": 443}

_NAT64 = IPv6Network("64:ff9b::/96")
_KEPT_ACROSS_ORIGINS = frozenset({"accept", "range", "if-none-match", "user-agent"})
"""Headers that go along to another origin; whatever else the caller sent was meant for the first."""

Resolve = Callable[[str, int], Sequence[str]]
"""The addresses of a host, given its name and the port."""


@dataclass(frozen=True)
class Allowed:
    """What may be reached although it is no public address. hosts: "name" or "name:port", in lower case."""

    hosts: frozenset[str] = frozenset()
    networks: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Allowed":
        """From names, name:port and networks (10.0.0.0/8) with commas between. Raises ValueError for anything else."""
        hosts, networks = set(), []
        for entry in filter(None, (part.strip().lower() for part in text.split(","))):
            if "/" in entry:
                networks.append(str(ip_network(entry)))
            elif any(c.isspace() or c in "@?#*" for c in entry):
                raise ValueError(f"{entry!r} is no host, host:port or network such as 10.0.0.0/8")
            else:
                hosts.add(entry)
        return cls(frozenset(hosts), tuple(networks))

    def holds_for(self, host: str, port: int, address: str) -> bool:
        """Whether that address of that host may be reached on that port."""
        if not self.hosts.isdisjoint({host.lower(), f"{host.lower()}:{port}"}):
            return True
        found = ip_address(address)
        return any(found in ip_network(network) for network in self.networks)


class Response:
    """What came back. url: where it came from, after redirects; headers: in lower case."""

    def __init__(self, response: httpx.Response, limit_bytes: int, deadline: float | None) -> None:
        self.status = response.status_code
        self.url = str(response.request.extensions["asked"])
        self.headers: Mapping[str, str] = {name.lower(): value for name, value in response.headers.items()}
        self._response, self._limit_bytes, self._deadline = response, limit_bytes, deadline

    def iter_bytes(self) -> Iterator[bytes]:
        """The body as it comes. Raises OutboundFailed past limit_bytes or the deadline, and when it breaks off."""
        received = 0
        try:
            for piece in self._response.iter_raw():
                received += len(piece)
                if received > self._limit_bytes:
                    raise OutboundFailed(f"{self.url}: answers more than the {self._limit_bytes} bytes that are taken")
                if self._deadline is not None and time.monotonic() > self._deadline:
                    raise OutboundFailed(f"{self.url}: the answer takes too long")
                yield piece
        except httpx.TransportError as error:
            raise OutboundFailed(f"{self.url}: the answer broke off: {error or type(error).__name__}") from error

    def read(self) -> bytes:
        """The whole body. Raises as `iter_bytes`."""
        return b"".join(self.iter_bytes())


def addresses_of(host: str, port: int) -> Sequence[str]:
    """The addresses that the system knows for a host. Raises OutboundFailed where it knows none."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise OutboundFailed(f"{host}: no such host ({error})") from error
    return [str(entry[4][0]) for entry in found]


def is_public(address: str) -> bool:
    """Whether an address is one of the internet's: not of this machine, its networks, or a way around to them.

    An IPv4 address inside an IPv6 one (mapped, 6to4, Teredo, NAT64) is judged by what it leads to.
    """
    found = ip_address(address.partition("%")[0])
    if isinstance(found, IPv6Address):
        inner = _embedded(found)
        if inner is not None:
            return is_public(str(inner))
    return found.is_global and not found.is_multicast and not found.is_reserved


def _embedded(address: IPv6Address) -> IPv4Address | None:
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)


@contextmanager
def request(
    settings: Settings,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    content: bytes | None = None,
    limit_bytes: int,
    read_timeout_s: float = 10.0,
    deadline_s: float | None = None,
    redirects: int = REDIRECTS,
    resolve: Resolve = addresses_of,
) -> Iterator[Response]:
    """The answer to one request, its body still to be read; the connection closes with the block.

    settings: say which addresses may be reached besides public ones. headers: reach the first origin only, but for what
    says which bytes are wanted. limit_bytes: of the body, 0 or more. read_timeout_s: between two pieces. deadline_s:
    for all of it, None for as long as pieces come. redirects: how many are followed; the answer that names one more is
    given as it is. Raises OutboundRefused for an address that may not be reached, OutboundFailed for one that does not
    answer.
    """
    allowed = Allowed.parse(settings.outbound_allow)
    deadline = None if deadline_s is None else time.monotonic() + deadline_s
    sent = {"User-Agent": f"adapterhub/{__version__}", "Accept-Encoding": "identity", **(headers or {})}
    target = _parse(url)
    timeout = httpx.Timeout(read_timeout_s, connect=CONNECT_S)
    with httpx.Client(trust_env=False, timeout=timeout, verify=ssl.create_default_context()) as client:
        for left in range(redirects, -1, -1):
            response = _send(client, allowed, method, target, sent, content, resolve)
            try:
                location = response.headers.get("location") if response.is_redirect else None
                if location is None or left == 0:
                    yield Response(response, limit_bytes, deadline)
                    return
            finally:
                response.close()
            following = _parse(str(target.join(location)))
            if target.scheme == "https" and following.scheme == "http":
                raise OutboundRefused(f"{target}: leads from https to {following}; that is not followed")
            if _origin(following) != _origin(target):
                sent = {name: value for name, value in sent.items() if name.lower() in _KEPT_ACROSS_ORIGINS}
            if response.status_code not in (307, 308) and method != "HEAD":
                method, content = "GET", None
            target = following


def _send(
    client: httpx.Client,
    allowed: Allowed,
    method: str,
    target: httpx.URL,
    headers: Mapping[str, str],
    content: bytes | None,
    resolve: Resolve,
) -> httpx.Response:
    address = _checked_address(allowed, target, resolve)
    pinned = client.build_request(
        method,
        target.copy_with(host=address),
        headers={**headers, "Host": target.netloc.decode("ascii")},
        content=content,
        extensions={"sni_hostname": target.raw_host.decode("ascii"), "asked": target},
    )
    try:
        return client.send(pinned, stream=True)
    except httpx.TransportError as error:
        raise OutboundFailed(f"{target}: {error or type(error).__name__}") from error


def check(url: str) -> None:
    """Pass for a URL that may be asked for, whatever its host turns out to be. Raises OutboundRefused."""
    _parse(url)


def _parse(url: str) -> httpx.URL:
    try:
        target = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise OutboundRefused(f"{url[:200]!r} is no URL: {error}") from None
    if target.scheme not in PORTS or not target.host:
        raise OutboundRefused(f"{url[:200]!r}: only http:// and https:// with a host are reached")
    if target.userinfo:
        raise OutboundRefused(f"{target.copy_with(userinfo=b'')}: a URL must not carry a name or password")
    return target


def _checked_address(allowed: Allowed, target: httpx.URL, resolve: Resolve) -> str:
    """The first address of the host, when every one of them may be reached: one that may not spoils the name."""
    port = target.port or PORTS[target.scheme]
    found = resolve(target.host, port)
    for address in found:
        if not is_public(address) and not allowed.holds_for(target.host, port, address):
            raise OutboundRefused(
                f"{target.host} is {address}, which is no public address; an administrator may allow it with "
                f"ADAPTERHUB_OUTBOUND_ALLOW={target.host}:{port}"
            )
    return found[0]


def _origin(target: httpx.URL) -> tuple[str, str, int]:
    return target.scheme, target.host, target.port or PORTS[target.scheme]
