"""Why a call failed. Each class says what the caller can do. Messages are for a person and hold no secret."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Optional

from ._types import ErrorClass


class Error(Exception):
    """A call failed. The subclasses mirror the error codes of the protocol."""

    #: Whether the same call may succeed later without anybody changing anything.
    retryable: bool = False
    #: Why the provider returned no token, where that is the reason.
    error_class: Optional[ErrorClass] = None
    #: When a retry may succeed, where the daemon knows it. Before that, a retry has the same result.
    next_attempt: Optional[datetime] = None

    @property
    def retry_after(self) -> Optional[float]:
        """The seconds until :attr:`next_attempt`, 0 if it has passed; None where the daemon does not know."""
        if self.next_attempt is None:
            return None
        return max(0.0, (self.next_attempt - datetime.now(timezone.utc)).total_seconds())


class NotReachable(Error):
    """There is no daemon at the socket, or it went away twice during one call. Try again later."""

    retryable = True


class NotAllowed(Error):
    """The caller may not do this, or there is no such token. Ask an operator: `tokenctl explain` says why."""


class UnknownToken(Error):
    """There is no such token. Correct the name. Only operators get this error."""


class Unavailable(Error):
    """No token now, for a reason that may pass. Try again after :attr:`retry_after` seconds."""

    retryable = True


class NeedsOperator(Error):
    """No token until an operator acts: the provider refuses or is not trusted, or a secret cannot be read."""


class DeadlineExceeded(Error):
    """The deadline of the call passed. Try again, or wait longer."""

    retryable = True


class InvalidRequest(Error):
    """The request is malformed, or does not fit the configuration of the token. Correct the request."""


class UnsupportedVersion(Error):
    """The daemon and this library speak no common version of the protocol. Upgrade one of them."""


class Overloaded(Error):
    """The caller or its user has too many connections or requests. Send fewer, and try again later."""

    retryable = True


class MinTtlUnreachable(Error):
    """No token lives as long as `min_ttl`. Ask for at most :attr:`best_ttl` seconds."""

    #: The longest remaining lifetime at hand, in seconds.
    best_ttl: Optional[float] = None


class ShuttingDown(Error):
    """The daemon is stopping, and was not restarted in time. Try again later."""

    retryable = True


class UnknownRequest(Error):
    """The daemon is older than this library and does not know the request. Upgrade the daemon."""


class ProtocolError(Error):
    """The answer does not follow the protocol. Perhaps another program listens at the socket."""


#: The class of each error code, by its number in the protocol.
CODES = (
    NotAllowed,
    UnknownToken,
    Unavailable,
    NeedsOperator,
    DeadlineExceeded,
    InvalidRequest,
    UnsupportedVersion,
    Overloaded,
    MinTtlUnreachable,
    ShuttingDown,
    UnknownRequest,
)
