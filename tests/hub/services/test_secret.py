from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import SecretStr

from adapterhub.hub.services.secret import load_or_make
from adapterhub.hub.settings import Settings


def test_the_secret_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    secret = load_or_make(settings)
    assert len(secret) >= 32
    assert load_or_make(settings) == secret
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


def test_processes_that_start_at_once_agree(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(load_or_make, [Settings(data=tmp_path)] * 32))) == 1


def test_a_given_secret_wins_and_is_not_written_down(tmp_path: Path) -> None:
    assert load_or_make(Settings(data=tmp_path, secret=SecretStr("g" * 32))) == b"g" * 32
    assert not list(tmp_path.iterdir())
