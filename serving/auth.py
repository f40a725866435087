"""API keys: stored hashed in the state database, looked up in memory, each with an owner and a role.

A key is `rk-` and 32 random bytes; only its SHA-256 is kept, which is enough for a secret that cannot be
guessed. Several keys may have one owner, so that a key can be replaced with an overlap.
"""

import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from enum import IntEnum
from hashlib import blake2b, sha256

import msgspec
from sqlalchemy import Column, DateTime, MetaData, String, Table, select, update

from feedback import database
from feedback.errors import StateUnavailable
from serving.errors import BadRequest, Forbidden, KeysUnavailable, Unauthenticated

_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Role(IntEnum):
    """What a key may do; each role includes the ones before it."""

    CHAT = 1
    """Chat, list models, give feedback on its own replies."""
    REVIEWER = 2
    """Also read and compare replies to anybody who lets them be learned from, in the review queue."""
    OPERATOR = 3
    """Also label anybody's replies and operate rollouts."""
    ADMIN = 4


class Principal(msgspec.Struct, frozen=True):
    """Who is asking."""

    owner: str
    role: Role
    cache_salt: str
    """Keeps one owner's cached prompts from being probed by another."""
    replies: frozenset[str] | None = None
    """Ids of all the replies that may be spoken of; None: any of the owner's."""


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """An API key as it is kept: `prefix` is enough to recognise it, not to use it."""

    prefix: str
    digest: str
    owner: str
    role: str
    created_at: datetime
    revoked_at: datetime | None = None


_metadata = MetaData()
_keys = Table(
    "api_keys",
    _metadata,
    Column("digest", String(64), primary_key=True),
    Column("prefix", String(16), nullable=False),
    Column("owner", String(64), nullable=False),
    Column("role", String(16), nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("revoked_at", DateTime(timezone=True)),
)


class Keys:
    """The table of keys. Blocking; every method raises KeysUnavailable when the database is out of reach."""

    def __init__(self, url: str) -> None:
        with _translated():
            self._engine = database.connect(url, _metadata)

    def create(self, owner: str, role: Role, now: datetime) -> str:
        """A new key's secret, which is not kept and cannot be shown again. Raises: BadRequest."""
        if not _OWNER.fullmatch(owner):
            raise BadRequest(f"owner {owner!r}: 1 to 64 letters, digits, dots, dashes, underscores")
        secret = f"rk-{secrets.token_urlsafe(32)}"
        row = {
            "digest": digest(secret),
            "prefix": secret[:10],
            "owner": owner,
            "role": role.name.lower(),
            "created_at": now,
        }
        with _translated(), database.writing(self._engine) as c:
            c.execute(_keys.insert().values(row))
        return secret

    def list(self) -> list[Key]:
        """Every key, the oldest first."""
        with _translated(), database.reading(self._engine) as c:
            rows = c.execute(select(_keys).order_by(_keys.c.created_at, _keys.c.digest))
            return [Key(**row) for row in rows.mappings()]

    def revoke(self, prefix: str, now: datetime) -> Key:
        """The one unrevoked key whose secret begins with `prefix`, revoked.

        Raises: BadRequest when none or several match.
        """
        found = [k for k in self.list() if prefix and k.prefix.startswith(prefix) and k.revoked_at is None]
        if len(found) != 1:
            raise BadRequest(f"{len(found)} unrevoked keys start with {prefix!r}; see `ratchet keys list`")
        with _translated(), database.writing(self._engine) as c:
            c.execute(update(_keys).where(_keys.c.digest == found[0].digest).values(revoked_at=now))
        return found[0]

    def close(self) -> None:
        self._engine.dispose()


class Authenticator:
    """Keys in memory: `principal` costs a hash and a look-up, `refresh` reads the table anew."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._principals: dict[str, Principal] = {}
        self._owners: frozenset[str] = frozenset()
        self._lock = threading.Lock()

    def refresh(self) -> None:
        """Blocking. Raises: KeysUnavailable; what was known stays known then."""
        with self._lock:
            self._principals = {k.digest: _principal(k) for k in self._keys.list() if k.revoked_at is None}
            self._owners = frozenset(p.owner for p in self._principals.values())

    def principal(self, headers: dict[bytes, bytes], needs: Role = Role.CHAT) -> Principal:
        """Raises: Unauthenticated; Forbidden."""
        principal = self._principals.get(sha256(bearer(headers)).hexdigest())
        if principal is None:
            raise Unauthenticated("this API key is unknown or revoked")
        if principal.role < needs:
            raise Forbidden(
                f"this needs the role {needs.name.lower()}, the key has {principal.role.name.lower()}"
            )
        return principal

    def knows(self, owner: str) -> bool:
        """Whether `owner` has a key that is not revoked."""
        return owner in self._owners


def bearer(headers: dict[bytes, bytes]) -> bytes:
    """What the request proves itself with. Raises: Unauthenticated."""
    scheme, _, secret = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() != b"bearer" or not secret:
        raise Unauthenticated("send your API key in the header `Authorization: Bearer rk-…`")
    return secret.strip()


def digest(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()


def _principal(key: Key) -> Principal:
    salt = blake2b(key.owner.encode(), digest_size=16, person=b"cache salt").hexdigest()
    return Principal(key.owner, Role[key.role.upper()], salt)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except StateUnavailable as e:
        raise KeysUnavailable(str(e)) from e
