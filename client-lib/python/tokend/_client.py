"""The client: connections to the daemon, deadlines, and what happens while the daemon restarts."""

from __future__ import annotations

import math
import os
import socket
import time
from collections import deque
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Callable, List, Optional, TypeVar, Union

from . import _wire as wire
from .errors import DeadlineExceeded, Error, NotReachable, ProtocolError, ShuttingDown
from ._types import Headers, ListedToken, Rejection, Token, Version

T = TypeVar("T")

DEFAULT_SOCKET = "/run/tokend/tokend.sock"
SOCKET_VARIABLE = "TOKEND_SOCKET"

# How many connections stay open between calls. More calls at once open more, and close them again.
IDLE_MAX = 8

# The seconds that this side waits beyond the deadline, so that the daemon's more detailed error normally arrives first.
GRACE = 0.25

# The waits between attempts to connect to a daemon that restarts. Together they are about as long as a restart.
RETURN_WAITS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)

# The wait while the daemon's queue of new connections is full.
QUEUE_WAIT = 0.005

NOTHING: Mapping[str, str] = {}


class Client:
    """Gets access tokens from the tokend daemon of this host.

    Threads may share a client: each call takes an idle connection or opens one. A forked process opens its own. Nothing
    is opened before the first call.

    `deadline` is how many seconds each call may take in all. The daemon knows it and answers in time. If the daemon does
    not, the call ends a quarter of a second later. With 0, the daemon does not wait for a provider.
    """

    def __init__(self, socket: Union[str, os.PathLike[str], None] = None, deadline: float = 10.0) -> None:
        self.socket = os.fspath(socket or os.environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET)
        self.deadline = deadline
        # Its `append` and `pop` are thread safe, so there is no lock that a fork could leave locked.
        self._idle: deque[Connection] = deque(maxlen=IDLE_MAX)
        # Whether an established connection broke, and no attempt to connect has ended since.
        self._returning = False

    def get(
        self,
        name: str,
        *,
        min_ttl: float = 0.0,
        scope: Iterable[str] = (),
        resource: Iterable[str] = (),
        audience: Iterable[str] = (),
        deadline: Optional[float] = None,
    ) -> Token:
        """Returns a valid access token that lasts for at least `min_ttl` seconds.

        `scope`, `resource` and `audience` ask for another variant of the token than the configured one.
        """
        request = wire.get_request(name, milliseconds(min_ttl), wire.variant(scope, resource, audience))
        return self._call(request, wire.TOKEN, wire.token, self._until(deadline))

    def headers(
        self,
        name: str,
        supplied: Mapping[str, str] = NOTHING,
        *,
        omit: Iterable[str] = (),
        min_ttl: float = 0.0,
        scope: Iterable[str] = (),
        resource: Iterable[str] = (),
        audience: Iterable[str] = (),
        deadline: Optional[float] = None,
    ) -> Headers:
        """Returns all headers of an API call, `Authorization` first.

        Each of the token's `caller_headers` is in `supplied`, or in `omit` if this call does not need it.
        """
        variant = wire.variant(scope, resource, audience)
        request = wire.headers_request(name, milliseconds(min_ttl), supplied, omit, variant)
        return self._call(request, wire.HEADERS, wire.headers, self._until(deadline))

    def reject(
        self,
        name: str,
        fingerprint: str,
        *,
        scope: Iterable[str] = (),
        resource: Iterable[str] = (),
        audience: Iterable[str] = (),
        deadline: Optional[float] = None,
    ) -> Rejection:
        """Reports that an API refused (401) the token with this fingerprint, which should be valid."""
        request = wire.reject_request(name, fingerprint, wire.variant(scope, resource, audience))
        outcome, info = self._call(request, wire.REJECTED, wire.rejected, self._until(deadline))
        return Rejection(outcome, info, is_new=info.fingerprint != fingerprint)

    def list(self, *, deadline: Optional[float] = None) -> List[ListedToken]:
        """Lists the tokens that the caller may read, sorted by name."""
        until = self._until(deadline)
        tokens: List[ListedToken] = []
        more = True
        while more:
            after = tokens[-1].name if tokens else None
            page, more = self._call(wire.list_request(after), wire.LIST, wire.listing, until)
            if more and not (page and page[-1].name > (after or "")):
                raise ProtocolError("a page of the list does not go on from the page before")
            tokens += page
        return tokens

    def version(self, *, deadline: Optional[float] = None) -> Version:
        """Returns the daemon's version."""
        return self._call(wire.version_request(), wire.VERSION_REPLY, wire.version, self._until(deadline))

    def close(self) -> None:
        """Closes the idle connections. A later call opens new ones."""
        while (connection := self._take_idle()) is not None:
            # Also those that the traceback of an error still holds.
            connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"tokend.Client({self.socket!r}, deadline={self.deadline!r})"

    def _until(self, deadline: Optional[float]) -> Deadline:
        return Deadline(self.deadline if deadline is None else deadline)

    def _call(self, request: wire.Request, expected: int, read: Callable[[wire.Reader], T], until: Deadline) -> T:
        """Sends a request, and sends it once more to the restarted daemon if the connection breaks."""
        try:
            return self._exchange(self._take_idle() or self._connect(until), request, expected, read, until)
        except Gone:
            self.close()
            self._returning = True
        try:
            return self._exchange(self._connect(until), request, expected, read, until)
        except Gone as gone:
            raise gone.error from None

    def _exchange(
        self,
        connection: Connection,
        request: wire.Request,
        expected: int,
        read: Callable[[wire.Reader], T],
        until: Deadline,
    ) -> T:
        try:
            reply = wire.reply(connection.exchange(request(until.for_daemon()), until), expected, read)
            if isinstance(reply, ShuttingDown):
                raise Gone(reply)
        except BaseException:
            # Also after a signal in the middle of an answer.
            connection.close()
            raise
        self._idle.append(connection)
        if not isinstance(reply, Error):
            return reply
        try:
            raise reply
        finally:
            # Otherwise the error would hold itself, by its traceback and this variable.
            del reply

    def _take_idle(self) -> Optional[Connection]:
        """An idle connection that this process opened. Others have the rights of the process that forked."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if connection.pid == os.getpid():
                return connection

    def _connect(self, until: Deadline) -> Connection:
        """Opens a connection. Without a daemon it fails at once, except after an established connection broke."""
        waits = iter(RETURN_WAITS)
        while True:
            try:
                connection = open_connection(self.socket, until)
            except BlockingIOError:
                wait = QUEUE_WAIT
            except OSError as error:
                may_return = isinstance(error, (FileNotFoundError, ConnectionRefusedError))
                wait = next(waits, 0.0) if self._returning and may_return else 0.0
                if not wait:
                    self._returning = False
                    raise not_reachable(self.socket, error) from None
            else:
                self._returning = False
                return connection
            time.sleep(min(wait, until.left()))


def open_connection(path: str, until: Deadline) -> Connection:
    """Connects, or fails with BlockingIOError if the daemon's queue of new connections is full."""
    connecting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connecting.settimeout(until.left())
        connecting.connect(path)
    except BaseException:
        connecting.close()
        raise
    return Connection(connecting, path)


class Connection:
    """A connection that only one call uses at a time. It is closed when it is dropped."""

    def __init__(self, connected: socket.socket, path: str) -> None:
        self.pid = os.getpid()
        self._socket = connected
        self._path = path
        self._id = 0
        # Bytes that were read, but not used yet.
        self._ahead = bytearray()

    def close(self) -> None:
        self._socket.close()

    __del__ = close

    def exchange(self, message: bytes, until: Deadline) -> wire.Reader:
        """Sends a request and returns the body of its reply, of which the envelope is read."""
        # 0 is the daemon's own.
        self._id = self._id % wire.U32_MAX + 1
        request = wire.frame(self._id, message)
        try:
            self._send(request, until)
            while True:
                size = int.from_bytes(self._read(4, until), "big")
                if size > wire.REPLY_MAX:
                    raise ProtocolError(f"an answer of {size} bytes exceeds the limit of {wire.REPLY_MAX}")
                reader = wire.Reader(self._read(size, until))
                answered = wire.envelope(reader)
                if answered == self._id:
                    return reader
                if answered == 0:
                    # It may be old, if the connection was idle, so a new connection is tried.
                    raise Gone(of_connection(reader))
                # Any other answer is to a request that was given up.
        except socket.timeout:
            raise silent() from None
        except ConnectionError as error:
            raise Gone(not_reachable(self._path, error)) from None
        except OSError as error:
            raise not_reachable(self._path, error) from None

    def _send(self, request: bytes, until: Deadline) -> None:
        self._socket.settimeout(until.left())
        try:
            self._socket.sendall(request)
        except BrokenPipeError:
            # The daemon may have sent the reason before it closed the connection.
            pass

    def _read(self, size: int, until: Deadline) -> bytes:
        while len(self._ahead) < size:
            before = len(self._ahead)
            self._socket.settimeout(until.left())
            self._ahead += self._socket.recv(max(4096, size - before))
            if len(self._ahead) == before:
                raise ConnectionError("the daemon closed the connection")
        taken = bytes(self._ahead[:size])
        del self._ahead[:size]
        return taken


class Deadline:
    """When a call ends: so many seconds from now, at most 49 days, the range of the protocol."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + min(max(seconds, 0.0), wire.U32_MAX / 1000)

    def for_daemon(self) -> int:
        """The milliseconds until the caller's deadline."""
        return max(0, int((self._end - time.monotonic()) * 1000))

    def left(self) -> float:
        """The seconds until this side gives up."""
        left = self._end + GRACE - time.monotonic()
        if left <= 0:
            raise silent()
        return left


class Gone(Exception):
    """The daemon went away. A request may be repeated, so it is sent again, once, to the next daemon."""

    def __init__(self, error: Error) -> None:
        super().__init__()
        self.error = error


def of_connection(reader: wire.Reader) -> Error:
    """The error that the daemon sent about the whole connection."""
    return wire.reply(reader, wire.ERROR, wire.error)


def silent() -> DeadlineExceeded:
    return DeadlineExceeded("the daemon did not answer before the deadline")


def not_reachable(path: str, error: OSError) -> NotReachable:
    remedy = f"check that tokend runs, and that this is its socket ({SOCKET_VARIABLE} names another one)"
    if isinstance(error, PermissionError):
        remedy = "add this process's user to the group of the socket, and start the process again"
    return NotReachable(f"the daemon cannot be reached at {path}: {error.strerror or error}; {remedy}")


def milliseconds(seconds: float) -> int:
    """Rounded up, because a token that expires a little too early is of no use."""
    return min(max(0, math.ceil(round(seconds * 1000, 3))), wire.U32_MAX)
