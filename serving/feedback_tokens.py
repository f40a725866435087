"""Feedback tokens: with one, a browser tells of one reply without an API key.

A token is `ft-`, an HMAC-SHA256 and what that signs: nothing is kept of it. Whoever holds it speaks as the user
who was answered, about that reply (and the one shown beside it), until it expires or its owner's last key is
revoked.
"""

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable
from datetime import datetime, timedelta
from hashlib import sha256

import msgspec

from serving.auth import Authenticator, Principal, Role, bearer
from serving.errors import Unauthenticated

PREFIX = "ft-"
_MAC_BYTES = 32


class _Allowed(msgspec.Struct, frozen=True, array_like=True):
    """What a token says, as MessagePack."""

    owner: str
    replies: tuple[str, ...]
    expires: int
    """Seconds since 1970."""


class FeedbackTokens:
    """Issues feedback tokens and reads them back."""

    def __init__(self, secret: bytes, authenticator: Authenticator, lifetime_s: float) -> None:
        self._key = hmac.digest(secret, b"feedback tokens", "sha256")
        self._authenticator = authenticator
        self._lifetime = timedelta(seconds=lifetime_s)

    def issue(self, owner: str, replies: Iterable[str], now: datetime) -> str:
        """A token for feedback on these replies of `owner`'s."""
        expires = int((now + self._lifetime).timestamp())
        said = msgspec.msgpack.encode(_Allowed(owner, tuple(replies), expires))
        return PREFIX + urlsafe_b64encode(self._mac(said) + said).decode().rstrip("=")

    def principal(self, headers: dict[bytes, bytes], now: datetime) -> Principal:
        """Who gives feedback, by API key or by token. Raises: Unauthenticated."""
        secret = bearer(headers)
        if not secret.startswith(PREFIX.encode()):
            return self._authenticator.principal(headers)
        allowed = self._read(secret.removeprefix(PREFIX.encode()))
        if now.timestamp() >= allowed.expires:
            raise Unauthenticated("this feedback token has expired: feedback now needs an API key")
        if not self._authenticator.knows(allowed.owner):
            raise Unauthenticated("the keys of this feedback token's owner are revoked")
        return Principal(allowed.owner, Role.CHAT, cache_salt="", replies=frozenset(allowed.replies))

    def _read(self, written: bytes) -> _Allowed:
        try:
            raw = urlsafe_b64decode(written + b"=" * (-len(written) % 4))
            mac, said = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
            if hmac.compare_digest(mac, self._mac(said)):
                return msgspec.msgpack.decode(said, type=_Allowed)
        except (ValueError, msgspec.DecodeError):
            pass
        raise Unauthenticated("this is no feedback token of this deployment's: send it as it was given")

    def _mac(self, said: bytes) -> bytes:
        return hmac.digest(self._key, said, sha256)
