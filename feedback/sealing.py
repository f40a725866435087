"""Sealing: authenticated encryption under one end user's data key. Keeps no key; `feedback.keyring` does.

AES-256-GCM (NIST SP 800-38D) with a random nonce of 96 bits, safe for 2^32 boxes under one key.
"""

import secrets

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from feedback.errors import CodecError

KEY_BYTES = 32
_NONCE_BYTES = 12


class DataKey(msgspec.Struct, frozen=True, gc=False):
    """One end user's key and the name under which it is kept."""

    id: str
    secret: bytes

    def __repr__(self) -> str:
        """Tracebacks and logs show no secret."""
        return f"DataKey({self.id!r})"

    def seal(self, plain: bytes, bound_to: bytes) -> bytes:
        """A box that opens only together with `bound_to`, so that it cannot be moved to another event."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + AESGCM(self.secret).encrypt(nonce, plain, bound_to)

    def open(self, box: bytes, bound_to: bytes) -> bytes:
        """Raises: CodecError for a box that is damaged or was sealed for something else."""
        try:
            return AESGCM(self.secret).decrypt(box[:_NONCE_BYTES], box[_NONCE_BYTES:], bound_to)
        except (InvalidTag, ValueError) as e:
            raise CodecError(f"what key {self.id} sealed does not open: it is damaged or moved") from e


def fresh_key() -> DataKey:
    return DataKey(f"k-{secrets.token_hex(16)}", secrets.token_bytes(KEY_BYTES))
