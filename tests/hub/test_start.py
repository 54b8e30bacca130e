import socket
from pathlib import Path

import pytest

from adapterhub.hub.errors import Unavailable
from adapterhub.hub.settings import Settings
from adapterhub.hub.start import listen


def test_answers_do_not_wait_for_the_acknowledgement_of_their_first_packet(tmp_path: Path) -> None:
    with (
        listen(Settings(data=tmp_path, port=0)) as listening,
        socket.create_connection(listening.getsockname()),
        listening.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


def test_an_address_that_is_taken_is_named(tmp_path: Path) -> None:
    with listen(Settings(data=tmp_path, port=0)) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(Unavailable, match=f"127.0.0.1:{port}.*ADAPTERHUB_PORT"):
            listen(Settings(data=tmp_path, port=port))
