"""The results of calls. No secret is in their `repr`, and none of them that holds one can be pickled."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import NamedTuple, NoReturn, Optional

# The numbers of the protocol are the places of the members in these enums.


class State(Enum):
    """The condition of a token. The daemon holds a valid token in the first three."""

    FRESH = "fresh"
    REFRESHING = "refreshing"
    DEGRADED = "degraded"
    PENDING = "pending"
    UNAVAILABLE = "unavailable"
    NEEDS_OPERATOR = "needs-operator"


class ErrorClass(Enum):
    """Why the daemon's last request to the provider failed."""

    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    TLS = "tls"
    THROTTLED = "throttled"
    SERVER = "server"
    MALFORMED = "malformed"
    REFUSED = "refused"
    SECRET = "secret"
    INTERNAL = "internal"


class RejectOutcome(Enum):
    """What the daemon did about a refused token."""

    #: The refused token was current, and there is a new one.
    REPLACED = "replaced"
    #: The daemon holds another token already.
    SUPERSEDED = "superseded"
    #: The provider returned the same token.
    UNCHANGED = "unchanged"
    #: The daemon did not ask the provider: the last request was too recent, or the token is too new.
    TOO_SOON = "too-soon"


class Secret:
    """A text that no `repr`, pickle or copy shows."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def expose(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "<hidden>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a token is not pickled or copied: get it where it is needed")


@dataclass(frozen=True)
class TokenInfo:
    """The lifetime and condition of a token."""

    #: Identifies the token without revealing it: 16 hexadecimal digits, as in the daemon's log.
    fingerprint: str
    #: When it expires, in UTC by the wall clock. :attr:`remaining` is right even after the clock was set.
    expires_at: datetime
    state: State
    #: Why the last attempt to renew it failed, if it did.
    last_error: Optional[ErrorClass]
    #: When the daemon will ask the provider next.
    next_attempt: Optional[datetime]
    _expires_at_boot: float = field(repr=False)

    @property
    def remaining(self) -> float:
        """The seconds until it expires, 0 if it has."""
        return max(0.0, self._expires_at_boot - time.clock_gettime(time.CLOCK_BOOTTIME))


@dataclass(frozen=True)
class Token(TokenInfo):
    """An access token. Only :attr:`secret` and :attr:`authorization` show it."""

    _secret: Secret = field(repr=False, compare=False)
    #: `Bearer`, normally.
    token_type: str
    #: The scopes that the provider says it granted, separated by spaces.
    scope: Optional[str]

    @property
    def secret(self) -> str:
        """The token itself."""
        return self._secret.expose()

    @property
    def authorization(self) -> str:
        """The value of the `Authorization` header."""
        return f"{self.token_type} {self.secret}"


class Headers(Mapping[str, str]):
    """All headers of an API call, `Authorization` first. Pass it to an HTTP client as it is."""

    def __init__(self, info: TokenInfo, headers: dict[str, Secret]) -> None:
        #: The lifetime and condition of the token in the headers.
        self.info = info
        self._headers = headers

    @property
    def fingerprint(self) -> str:
        """Identifies the token in the headers, for :meth:`Client.reject`."""
        return self.info.fingerprint

    def __getitem__(self, name: str) -> str:
        return self._headers[name].expose()

    def __iter__(self) -> Iterator[str]:
        return iter(self._headers)

    def __len__(self) -> int:
        return len(self._headers)

    def __repr__(self) -> str:
        return f"<Headers {', '.join(self._headers)} with the token {self.fingerprint}>"


class Rejection(NamedTuple):
    """What the daemon did about a refused token."""

    outcome: RejectOutcome
    #: The token that the daemon holds now.
    info: TokenInfo
    #: Whether that is another token than the refused one. If so, get it and try again. Otherwise a new token does not help.
    is_new: bool


class ListedToken(NamedTuple):
    """A token that the caller may read."""

    name: str
    state: State


class Version(NamedTuple):
    """The daemon's version."""

    #: The release.
    daemon: str
    #: The oldest protocol version that the daemon speaks.
    oldest: int
    #: The newest one.
    newest: int
    #: The highest number of a request that the daemon knows.
    highest_request: int
