"""A daemon in this process that answers as a test says, and the golden frames of the protocol."""

from __future__ import annotations

import os
import socket
import struct
import tempfile
import threading
import unittest
from pathlib import Path
from typing import Callable, List, Union

from tokend import _wire as wire

GOLDEN = Path(__file__).resolve().parents[3] / "protocol/tests/golden"

#: How long a test waits for what must come. Far longer than it needs: the machine may be very busy.
PATIENCE = 180.0

#: Bytes to send as they are, the message of a reply, or None to close the connection.
Answer = Union["Raw", bytes, None]


class Raw(bytes):
    """Bytes to send as they are. The connection is closed after them."""


def golden(name: str) -> bytes:
    """A golden frame."""
    return (GOLDEN / name).read_bytes()


def message(name: str) -> bytes:
    """The message of a golden frame, without its envelope."""
    return golden(name)[9:]


def reply(request_id: int, of: bytes) -> bytes:
    """A frame with this message, whose extensions are part of it."""
    body = b"\x01" + request_id.to_bytes(4, "big") + of
    return len(body).to_bytes(4, "big") + body


def info(fingerprint: str) -> bytes:
    # issued_at, expires_at, expires_at_wall, fresh, no last_error, no next_attempt
    times = wire.number(1000) + wire.number(90_000_000_000) + wire.number(1_764_003_600_000)
    return times + b"\0\0\0" + bytes.fromhex(fingerprint)


def token(secret: str, fingerprint: str = "0123456789abcdef") -> bytes:
    """The message of a token reply."""
    return b"\0" + info(fingerprint) + wire.string(secret) + wire.string("Bearer") + b"\0\0"


def rejected(fingerprint: str) -> bytes:
    """The message of a reply to a rejection: the token that is held now."""
    return b"\x05\0" + info(fingerprint) + b"\0"


def error(code: int, text: str) -> bytes:
    return b"\x08" + wire.number(code) + wire.string(text) + b"\0\0\0\0"


def socket_path(test: unittest.TestCase) -> str:
    """A path for a socket, in a directory that goes when the test does."""
    directory = tempfile.TemporaryDirectory(prefix="tokend-")
    test.addCleanup(directory.cleanup)
    return os.path.join(directory.name, "tokend.sock")


class FakeDaemon:
    """Listens at a socket, and answers each request with what the function returns for its message."""

    def __init__(self, answer: Callable[[bytes], Answer], path: str) -> None:
        self.path = path
        self.messages: List[bytes] = []
        #: The process of each connection so far.
        self.peers: List[int] = []
        #: The id of each request so far.
        self.ids: List[int] = []
        #: Counts the connections that have ended.
        self.ended = threading.Semaphore(0)
        self._answer = answer
        self._open: List[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        """Closes all connections and removes the socket."""
        if self._listener.fileno() < 0:
            return
        os.unlink(self.path)
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def send_to_all(self, data: bytes) -> None:
        for connection in self._open:
            connection.sendall(data)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            self.peers.append(struct.unpack("3i", credentials)[0])
            self._open.append(connection)
            threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            try:
                while len(head := stream.read(4)) == 4:
                    body = stream.read(int.from_bytes(head, "big"))
                    self.ids.append(int.from_bytes(body[1:5], "big"))
                    self.messages.append(body[5:])
                    answer = self._answer(body[5:])
                    if answer is None:
                        return
                    if isinstance(answer, Raw):
                        connection.sendall(answer)
                        return
                    connection.sendall(reply(int.from_bytes(body[1:5], "big"), answer))
            except OSError:
                # The client closed the connection.
                pass
            finally:
                self.ended.release()
