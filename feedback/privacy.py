"""Pseudonyms of end users: a keyed hash, so that no name that a client sent is ever stored."""

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from feedback.errors import ConfigError

PREFIX = "u-"
"""How every pseudonym begins."""
_SECRET_BYTES = 32


def secret(path: Path) -> bytes:
    """The deployment's secret, made with mode 0600 on first use.

    Losing it cuts every pseudonym off from its user: back it up. Processes that start together agree on one.
    Raises: ConfigError when the file cannot be read or made, is too short, or is open to everybody.
    """
    try:
        if not path.exists():
            _create(path)
        if path.stat().st_mode & 0o007:
            raise ConfigError(f"the secret {path} is open to every user of this machine: chmod 600 it")
        found = path.read_bytes()
    except OSError as e:
        raise ConfigError(f"the secret {path}: {e.strerror}") from e
    if len(found) < _SECRET_BYTES:
        raise ConfigError(f"the secret {path} has {len(found)} bytes, at least {_SECRET_BYTES} are needed")
    return found


def pseudonym(secret: bytes, principal: str, user: str = "") -> str:
    """The stored name of `user` as known to `principal`; of the principal itself when `user` is empty.

    Two principals' users of the same name are two people, hence two pseudonyms.
    """
    name = principal.encode(errors="surrogatepass")
    message = len(name).to_bytes(8, "big") + name + user.encode(errors="surrogatepass")
    return PREFIX + hmac.new(secret, message, hashlib.sha256).hexdigest()[:32]


def _create(path: Path) -> None:
    """Written under another name and then linked: nobody ever reads half a secret, and the first one wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_SECRET_BYTES))
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
        _sync(path.parent)
    except FileExistsError:
        pass  # another process was first
    finally:
        draft.unlink()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
