"""The bytes of the protocol, version 1, as `protocol/PROTOCOL.md` specifies them. It does no I/O.

No local variable holds a secret where an exception is raised, because some programs log the variables of a traceback.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta, timezone
from enum import Enum
from typing import Callable, Optional, TypeVar, Union

from . import _types as types
from .errors import CODES, Error, InvalidRequest, MinTtlUnreachable, ProtocolError, UnsupportedVersion

T = TypeVar("T")
E = TypeVar("E", bound=Enum)

#: A request, but for the milliseconds until the deadline: a repeated request has fewer.
Request = Callable[[int], bytes]

VERSION = 1
REQUEST_MAX = 16_384
REPLY_MAX = 262_144
U32_MAX = 0xFFFF_FFFF

TOKEN, HEADERS, LIST, REJECTED, VERSION_REPLY, ERROR = 0, 1, 2, 5, 7, 8
"""The numbers of the replies."""

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:+-]{0,254}", re.ASCII)


# Requests


def number(value: int) -> bytes:
    for limit, mark, size in ((251, b"", 1), (1 << 16, b"\xfb", 2), (1 << 32, b"\xfc", 4)):
        if value < limit:
            return mark + value.to_bytes(size, "little")
    return b"\xfd" + value.to_bytes(8, "little")


def string(text: str) -> bytes:
    if not isinstance(text, str):
        raise TypeError(f"a string was expected, not {type(text).__name__}")
    utf8 = encoded(text)
    if utf8 is None:
        raise InvalidRequest("a text of the request is not valid Unicode")
    return number(len(utf8)) + utf8


def encoded(text: str) -> Optional[bytes]:
    """The text in UTF-8, or None if it has none: Python's own error would show the text."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return None


def strings(what: str, texts: Iterable[str]) -> bytes:
    if isinstance(texts, str):
        raise TypeError(f"{what} is a list of strings, not one string")
    elements = [string(text) for text in texts]
    return number(len(elements)) + b"".join(elements)


def name(text: str) -> bytes:
    utf8 = string(text)
    if not NAME.fullmatch(text):
        raise InvalidRequest(
            f"{text!r} is no token name: 1 to 255 letters, digits and . _ - @ : +, beginning with a letter or digit"
        )
    return utf8


def variant(scope: Iterable[str], resource: Iterable[str], audience: Iterable[str]) -> bytes:
    return strings("scope", scope) + strings("resource", resource) + strings("audience", audience)


def get_request(token: str, min_ttl_ms: int, of_variant: bytes) -> Request:
    head, tail = b"\0" + name(token), number(min_ttl_ms) + of_variant
    return lambda deadline_ms: head + number(deadline_ms) + tail


def headers_request(
    token: str, min_ttl_ms: int, supplied: Mapping[str, str], omitted: Iterable[str], of_variant: bytes
) -> Request:
    pairs = b"".join(string(header) + string(value) for header, value in supplied.items())
    caller_headers = number(len(supplied)) + pairs + strings("omit", omitted)
    head, tail = b"\x01" + name(token), number(min_ttl_ms) + caller_headers + of_variant
    return lambda deadline_ms: head + number(deadline_ms) + tail


def list_request(after: Optional[str]) -> Request:
    message = b"\x02" + (b"\0" if after is None else b"\x01" + name(after))
    return lambda _deadline_ms: message


def reject_request(token: str, fingerprint: str, of_variant: bytes) -> Request:
    if not re.fullmatch("[0-9a-f]{16}", fingerprint):
        raise InvalidRequest("a fingerprint has 16 hexadecimal digits: pass that of the refused token")
    head = b"\x05" + name(token) + bytes.fromhex(fingerprint)
    return lambda deadline_ms: head + number(deadline_ms) + of_variant


def version_request() -> Request:
    return lambda _deadline_ms: b"\x07"


def frame(request_id: int, message: bytes) -> bytes:
    """A whole frame: length, version, request id, message, and an empty list of extensions."""
    body = bytes([VERSION]) + request_id.to_bytes(4, "big") + message + b"\0"
    if len(body) > REQUEST_MAX:
        raise InvalidRequest(f"a request of {len(body)} bytes exceeds the limit of {REQUEST_MAX}")
    return len(body).to_bytes(4, "big") + body


# Replies


class Reader:
    """Reads one body from its beginning to its end."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def take(self, size: int) -> bytes:
        start, self._at = self._at, self._at + size
        if self._at > len(self._body):
            raise ProtocolError("the daemon's answer is not understood: it is cut")
        return self._body[start : self._at]

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self, size: int = 8) -> int:
        """An unsigned number of at most so many bytes."""
        first = self.byte()
        if first < 251:
            return first
        width = {251: 2, 252: 4, 253: 8}.get(first)
        if width is None or width > size:
            raise malformed("number")
        return int.from_bytes(self.take(width), "little")

    def string(self) -> str:
        text = decoded(self.take(self.number()))
        if text is None:
            raise malformed("text")
        return text

    def optional(self, read: Callable[[], T]) -> Optional[T]:
        return read() if self.boolean() else None

    def boolean(self) -> bool:
        value = self.byte()
        if value > 1:
            raise malformed("yes or no")
        return value == 1

    def enum(self, members: type[E]) -> E:
        index, known = self.number(4), list(members)
        if index >= len(known):
            raise malformed(members.__name__)
        return known[index]

    def time(self) -> datetime:
        millis = self.number()
        # The year 9999.
        if millis >= 253_402_300_800_000:
            raise malformed("time")
        return EPOCH + timedelta(milliseconds=millis)

    def milliseconds(self) -> float:
        return self.number() / 1000

    def end(self) -> None:
        """Skips the extensions, which must be the last bytes."""
        for _ in range(self.number()):
            self.number(4)
            self.take(self.number())
        if self._at != len(self._body):
            raise ProtocolError("the daemon's answer is not understood: bytes follow the message")


def malformed(what: str) -> ProtocolError:
    return ProtocolError(f"the daemon's answer is not understood: it has an invalid value ({what})")


def decoded(text: bytes) -> Optional[str]:
    """The text, or None: Python's own error would hold the bytes."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return None


def envelope(reader: Reader) -> int:
    """Reads the first part of a body: the request id."""
    version = reader.byte()
    if version != VERSION:
        raise UnsupportedVersion(f"the daemon answers in version {version} of the protocol, not in {VERSION}")
    return int.from_bytes(reader.take(4), "big")


def reply(reader: Reader, expected: int, read: Callable[[Reader], T]) -> Union[T, Error]:
    """Reads the rest of a body: the expected reply, or an error."""
    kind = reader.number(4)
    result: Union[T, Error]
    if kind == ERROR:
        result = error(reader)
    elif kind == expected:
        result = read(reader)
    else:
        raise ProtocolError("the daemon's answer is not understood: it answers another request")
    reader.end()
    return result


def error(reader: Reader) -> Error:
    code = reader.number(4)
    if code >= len(CODES):
        raise malformed("code")
    failure: Error = CODES[code](reader.string())
    failure.error_class = reader.optional(lambda: reader.enum(types.ErrorClass))
    failure.next_attempt = reader.optional(reader.time)
    best_ttl = reader.optional(reader.milliseconds)
    if isinstance(failure, MinTtlUnreachable):
        failure.best_ttl = best_ttl
    return failure


def info(reader: Reader) -> types.TokenInfo:
    reader.number()  # issued_at
    expires_at_boot, expires_at, state = reader.milliseconds(), reader.time(), reader.enum(types.State)
    last_error = reader.optional(lambda: reader.enum(types.ErrorClass))
    next_attempt = reader.optional(reader.time)
    return types.TokenInfo(
        reader.take(8).hex(), expires_at, state, last_error, next_attempt, _expires_at_boot=expires_at_boot
    )


def token(reader: Reader) -> types.Token:
    of = info(reader)
    secret = types.Secret(reader.string())
    return types.Token(**vars(of), _secret=secret, token_type=reader.string(), scope=reader.optional(reader.string))


def headers(reader: Reader) -> types.Headers:
    of = info(reader)
    return types.Headers(of, {reader.string(): types.Secret(reader.string()) for _ in range(reader.number())})


def listing(reader: Reader) -> tuple[list[types.ListedToken], bool]:
    """A page of the list, and whether another one follows."""
    tokens = [types.ListedToken(reader.string(), reader.enum(types.State)) for _ in range(reader.number())]
    return tokens, reader.boolean()


def rejected(reader: Reader) -> tuple[types.RejectOutcome, types.TokenInfo]:
    return reader.enum(types.RejectOutcome), info(reader)


def version(reader: Reader) -> types.Version:
    return types.Version(reader.string(), reader.byte(), reader.byte(), reader.number(4))
