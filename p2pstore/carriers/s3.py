"""A bucket of S3, or of anything that speaks its protocol, as a carrier.

A piece is the object PREFIX/NAME; its key is NAME. It is put only if nothing is there
("If-None-Match: *"). Hosts that refuse to know that condition (501) are asked first instead, and
then two programs that put different pieces under one name in the same instant would both succeed.

`put` is exact: each request is signed together with the SHA-256 of its body (Signature Version 4),
and a host stores what it was sent or refuses.

Environment variables of Amazon's tools play no part, but for those that name a proxy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Literal

from p2pstore.carriers.carrier import NotThere, Promises
from p2pstore.carriers.config import S3Config, is_harmless
from p2pstore.errors import IntegrityError, NoRoom, Unavailable, UsageError

if TYPE_CHECKING:
    from obstore.store import S3Credential, S3Store

PIECE: Final = 32 << 20  # a whole bundle; S3 itself takes 5 GiB at once
CONNECT_S: Final = 10.0
ANSWER_S: Final = 30.0  # between two reads of an answer
SENDING_S: Final = 900.0  # a piece over a line of 300 kbit/s; the host answers at its end
RETRIES: Final = 2  # of one call; whoever calls tries again later anyway
RETRYING_S: Final = 20.0

_KEYS = "refuses the access_key and secret_key"
_SENTENCES: Final = {
    "AccessDenied": "does not allow it: the key needs the rights to list the bucket, and to get, "
    "put and delete its objects.",
    "AuthorizationHeaderMalformed": "belongs to another region: set region.",
    "EntityTooLarge": "does not take pieces of that size.",
    "ExpiredToken": f"{_KEYS}: they have expired.",
    "IllegalLocationConstraintException": "belongs to another region: set region.",
    "InvalidAccessKeyId": f"{_KEYS}: it does not know such an access_key.",
    "InvalidBucketName": "cannot be: the host knows no such names of buckets.",
    "NoSuchBucket": "does not exist: make it first, or mend its name.",
    "PermanentRedirect": "lies elsewhere: mend endpoint or region.",
    "RequestTimeTooSkewed": "refuses us because the clock of this machine is wrong: set it.",
    "SignatureDoesNotMatch": f"{_KEYS}: the secret_key is another one.",
}
_FULL: Final = frozenset({"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage"})
_REDIRECTED: Final = "incorrectly configured region"  # obstore's words for it
_NO_AUTHORITIES: Final = "No CA certificates"
_CODE = re.compile(r"<Code>([A-Za-z0-9.]{1,64})</Code>")
_STATUS = re.compile(r"non-2xx status code: ([0-9]{3})")


class S3Carrier:
    def __init__(self, name: str, config: S3Config) -> None:
        """UsageError when the extra `s3` is not installed, or TLS could trust nobody here."""
        try:
            import obstore
        except ImportError as exc:
            raise UsageError("Carriers of S3 need more: install p2pstore[s3].") from exc
        self.promises = Promises(PIECE, is_exact=True, keeps_names=True, deletes=True)
        self._obstore = obstore
        self._who = f"The bucket {config.bucket} of the carrier {name}"
        try:
            # While a body is sent nothing is read: that would count as silence.
            self._sending = _store(config, SENDING_S)
            self._reading = _store(config, ANSWER_S)
        except obstore.exceptions.BaseError as exc:
            if _NO_AUTHORITIES not in str(exc):
                raise
            raise UsageError(
                f"{self._who} cannot be told from an impostor: this machine has no certificates of "
                "authorities. Install the package ca-certificates."
            ) from exc
        self._knows_conditions = True

    def key_of(self, name: str) -> str | None:
        return name

    async def put(self, name: str, content: bytes) -> str:
        self._check(name)
        if len(content) > PIECE:
            raise UsageError(f"{self._who} takes at most {PIECE:,} bytes at once.")
        if not await self._put(name, content) and await self.get(name) != content:
            raise UsageError(f"{self._who} holds other bytes under the name {name}.")
        return name

    async def get(self, key: str) -> bytes:
        self._check(key)
        with self._telling(key):
            found = await self._obstore.get_async(self._reading, key)
            if found.meta["size"] > PIECE:
                raise IntegrityError(f"{self._who} holds something under {key} that is not ours.")
            return bytes(await found.bytes_async())

    async def delete(self, key: str) -> None:
        self._check(key)
        try:
            with self._telling(key):
                await self._obstore.delete_async(self._reading, key)
        except NotThere:
            return

    async def close(self) -> None:
        """Connections end by themselves."""

    def _check(self, name: str) -> None:
        if not is_harmless(name):
            raise UsageError(f"{self._who} stores nothing under such a name: {name[:80]!r}.")

    async def _put(self, name: str, content: bytes) -> bool:
        """False when something is there already."""
        if self._knows_conditions:
            try:
                with self._telling(name):
                    await self._send(name, content, only_new=True)
                return True
            except _Exists:
                return False
            except _NoConditions:
                self._knows_conditions = False
        try:
            await self.get(name)
            return False
        except NotThere:
            with self._telling(name):
                await self._send(name, content, only_new=False)
            return True

    async def _send(self, name: str, content: bytes, *, only_new: bool) -> None:
        mode: Literal["create", "overwrite"] = "create" if only_new else "overwrite"
        put = self._obstore.put_async
        await put(self._sending, name, content, mode=mode, use_multipart=False)

    @contextmanager
    def _telling(self, key: str) -> Iterator[None]:
        """What goes wrong, as ours."""
        errors = self._obstore.exceptions
        try:
            yield
        except errors.AlreadyExistsError as exc:
            raise _Exists from exc
        except (errors.BaseError, OSError, ValueError) as exc:
            raise self._told(str(exc), key) from exc

    def _told(self, text: str, key: str) -> Exception:
        code, status = _CODE.search(text), _STATUS.search(text)
        word, number = code[1] if code else "", status[1] if status else ""
        if word == "NoSuchKey":  # no other 404 says it: it may be of a proxy, or of a wrong host
            return NotThere(f"{self._who} does not have {key}.")
        if word in _SENTENCES:
            return UsageError(f"{self._who} {_SENTENCES[word]}")
        if _REDIRECTED in text:
            return UsageError(f"{self._who} {_SENTENCES['PermanentRedirect']}")
        if number == "501":
            return _NoConditions(f"{self._who} cannot do that.")
        if word in _FULL or number == "507":
            return NoRoom(f"{self._who} is full.")
        said = f": {number} {word}".rstrip() if number else ""
        if number in ("401", "403"):
            return UsageError(f"{self._who} refuses us{said}.")
        return Unavailable(f"{self._who} cannot be used now{said}.")


class _Exists(Exception):
    """Something has that name already."""


class _NoConditions(UsageError):
    """The host does not know the condition of a request."""


def _store(config: S3Config, answer_s: float) -> S3Store:
    from obstore.store import S3Store

    def credentials() -> S3Credential:
        return {
            "access_key_id": config.access_key,
            "secret_access_key": config.secret_key,
            "token": None,
            "expires_at": None,
        }

    return S3Store(
        config.bucket,
        prefix=config.prefix or None,
        endpoint=config.endpoint or f"https://s3.{config.region}.amazonaws.com",
        region=config.region,
        credential_provider=credentials,
        virtual_hosted_style_request=False,
        unsigned_payload=False,
        skip_signature=False,
        disable_bulk_delete=True,  # some hosts have no other way than one by one
        client_options={
            "allow_http": config.allow_http,
            "connect_timeout": timedelta(seconds=CONNECT_S),
            "read_timeout": timedelta(seconds=answer_s),
            "timeout": timedelta(seconds=SENDING_S),
        },
        retry_config={"max_retries": RETRIES, "retry_timeout": timedelta(seconds=RETRYING_S)},
    )
