"""Gets access tokens from the tokend daemon of this host.

A service gets a token by its name in the daemon's configuration, each time that it needs one. The daemon has requested
the token before and renews it in time, so a call never waits for the provider while the daemon holds a valid token. Do
not cache the token: get it again for each piece of work.

>>> client = tokend.Client()
>>> token = client.get("psb")
>>> headers = {"Authorization": token.authorization}

For HTTP clients, see :mod:`tokend.requests` and :mod:`tokend.httpx`.
"""

from ._client import DEFAULT_SOCKET, SOCKET_VARIABLE, Client
from .errors import (
    DeadlineExceeded,
    Error,
    InvalidRequest,
    MinTtlUnreachable,
    NeedsOperator,
    NotAllowed,
    NotReachable,
    Overloaded,
    ProtocolError,
    ShuttingDown,
    Unavailable,
    UnknownRequest,
    UnknownToken,
    UnsupportedVersion,
)
from ._types import (
    ErrorClass,
    Headers,
    ListedToken,
    Rejection,
    RejectOutcome,
    State,
    Token,
    TokenInfo,
    Version,
)

__all__ = [
    "DEFAULT_SOCKET",
    "SOCKET_VARIABLE",
    "Client",
    "DeadlineExceeded",
    "Error",
    "ErrorClass",
    "Headers",
    "InvalidRequest",
    "ListedToken",
    "MinTtlUnreachable",
    "NeedsOperator",
    "NotAllowed",
    "NotReachable",
    "Overloaded",
    "ProtocolError",
    "RejectOutcome",
    "Rejection",
    "ShuttingDown",
    "State",
    "Token",
    "TokenInfo",
    "Unavailable",
    "UnknownRequest",
    "UnknownToken",
    "UnsupportedVersion",
    "Version",
]
