#!/usr/bin/env python3
"""Gets an access token from tokend: python3 get_token.py NAME [SOCKET]. Standard library only.

A complete client of one request, written from PROTOCOL.md.
"""
import os
import socket
import sys
import time


def number(value):
    """A u32 or u64."""
    for limit, mark, size in ((251, b"", 1), (1 << 16, b"\xfb", 2), (1 << 32, b"\xfc", 4), (1 << 64, b"\xfd", 8)):
        if value < limit:
            return mark + value.to_bytes(size, "little")


def string(text):
    return number(len(text.encode())) + text.encode()


class Reader:
    def __init__(self, body):
        self.body = body

    def take(self, size):
        taken, self.body = self.body[:size], self.body[size:]
        if len(taken) < size:
            raise ValueError("the reply is cut")
        return taken

    def number(self):
        first = self.take(1)[0]
        return first if first < 251 else int.from_bytes(self.take({251: 2, 252: 4, 253: 8}[first]), "little")

    def string(self):
        return self.take(self.number()).decode()

    def optional(self, read):
        return read() if self.take(1) == b"\x01" else None


def exactly(connection, size):
    data = b""
    while len(data) < size:
        received = connection.recv(size - len(data))
        if not received:
            raise ConnectionError("tokend closed the connection")
        data += received
    return data


def get_token(name, path, deadline_ms=10_000):
    variant, extensions = b"\0\0\0", b"\0"
    message = number(0) + string(name) + number(deadline_ms) + number(0) + variant + extensions
    body = b"\x01" + (1).to_bytes(4, "big") + message
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(deadline_ms / 1000 + 1)
        connection.connect(path)
        connection.sendall(len(body).to_bytes(4, "big") + body)
        reply = Reader(exactly(connection, int.from_bytes(exactly(connection, 4), "big")))
    reply.take(5)  # version and request id
    kind = reply.number()
    if kind == 8:
        raise RuntimeError(f"error {reply.number()}: {reply.string()}")
    if kind != 0:
        raise ValueError(f"unexpected reply {kind}")
    _issued_at, expires_at, _wall, _state = (reply.number() for _ in range(4))
    reply.optional(reply.number), reply.optional(reply.number), reply.take(8)  # last error, next attempt, fingerprint
    return {"token": reply.string(), "token_type": reply.string(), "scope": reply.optional(reply.string),
            "expires_in": expires_at / 1000 - time.clock_gettime(time.CLOCK_BOOTTIME)}


if __name__ == "__main__":
    path = sys.argv[2] if len(sys.argv) > 2 else os.environ.get("TOKEND_SOCKET", "/run/tokend/tokend.sock")
    print(get_token(sys.argv[1], path)["token"])
