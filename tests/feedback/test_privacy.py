"""Pseudonyms and the secret behind them."""

import multiprocessing
import stat
from pathlib import Path

import pytest

from feedback.errors import ConfigError
from feedback.privacy import pseudonym, secret

SECRET = bytes(range(32))


def test_a_pseudonym_is_the_keyed_hash_of_principal_and_user() -> None:
    """The name in the log must stay the same over releases, or a user's history falls apart.

    printf '\\0\\0\\0\\0\\0\\0\\0\\4acmealice' | openssl dgst -sha256 -mac HMAC -macopt hexkey:000102…1f
    gives a8a2ae3284886534901ce5f65bdaa4b3…: the principal's length in 8 bytes, the principal, the user.
    """
    assert pseudonym(SECRET, "acme", "alice") == "u-a8a2ae3284886534901ce5f65bdaa4b3"


def test_pseudonyms_tell_people_apart() -> None:
    """Other user, principal or secret, nobody named, and no way to slide the border between the names."""
    names = {
        pseudonym(SECRET, "acme", "alice"),
        pseudonym(SECRET, "acme", "bob"),
        pseudonym(SECRET, "globex", "alice"),
        pseudonym(bytes(32), "acme", "alice"),
        pseudonym(SECRET, "acme"),
        pseudonym(SECRET, "acmea", "lice"),
        pseudonym(SECRET, "acmealice"),
    }
    assert len(names) == 7


def test_a_pseudonym_shows_nothing_of_the_name() -> None:
    """Not even its length."""
    assert len(pseudonym(SECRET, "p", "x")) == len(pseudonym(SECRET, "p", "x" * 1000)) == 34
    assert "alice" not in pseudonym(SECRET, "acme", "alice")


def test_a_name_that_is_no_valid_text_still_gets_one() -> None:
    """Clients send what they like, half a surrogate pair included."""
    assert pseudonym(SECRET, "acme", "\ud800").startswith("u-")


def test_the_secret_is_made_once_and_only_for_its_owner(tmp_path: Path) -> None:
    """A second start, or a second gateway, must find the same users."""
    path = tmp_path / "data" / "secret"
    first = secret(path)
    assert len(first) == 32
    assert secret(path) == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["secret"]


def test_two_deployments_have_two_secrets(tmp_path: Path) -> None:
    """Pseudonyms of one cannot be looked up in the other."""
    assert secret(tmp_path / "a") != secret(tmp_path / "b")


def _told(path: Path) -> bytes:
    return secret(path)


@pytest.mark.slow
def test_processes_that_start_together_agree(tmp_path: Path) -> None:
    """Each gateway asks for it at once on the first start; nobody may see a half-written one."""
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        for n in range(10):
            assert len(set(pool.map(_told, [tmp_path / f"secret-{n}"] * 4))) == 1


@pytest.mark.parametrize("mode", [0o604, 0o666, 0o602])
def test_a_secret_that_everybody_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    """Who has it can undo every pseudonym by trying names; the message says what to do."""
    path = tmp_path / "secret"
    secret(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        secret(path)


def test_a_short_secret_is_refused(tmp_path: Path) -> None:
    """An empty file would make every pseudonym a plain hash."""
    path = tmp_path / "secret"
    path.write_bytes(b"short")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="5 bytes"):
        secret(path)


def test_a_secret_out_of_reach_is_named(tmp_path: Path) -> None:
    """A file where a folder should be."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="secret"):
        secret(tmp_path / "file" / "secret")
