#!/usr/bin/env python3
"""Gets an access token from tokend: python3 get_token.py NAME [SOCKET]. Written from PROTOCOL.md, standard library only."""
import io
import os
import socket
import sys
import time


def number(value):
    for limit, mark, size in ((251, b"", 1), (1 << 16, b"\xfb", 2), (1 << 32, b"\xfc", 4), (1 << 64, b"\xfd", 8)):
        if value < limit:
            return mark + value.to_bytes(size, "little")


class Reader:
    def __init__(self, stream):
        self.stream = stream

    def take(self, size):
        taken = self.stream.read(size)
        if len(taken) < size:
            raise ConnectionError("the reply is cut")
        return taken

    def number(self):
        first = self.take(1)[0]
        return first if first < 251 else int.from_bytes(self.take({251: 2, 252: 4, 253: 8}[first]), "little")

    def string(self):
        return self.take(self.number()).decode()

    def optional(self, read):
        return read() if self.take(1) == b"\x01" else None


def get_token(name, path=os.environ.get("TOKEND_SOCKET", "/run/tokend/tokend.sock"), deadline_ms=10_000):
    text, variant, extensions = name.encode(), b"\0\0\0", b"\0"
    message = number(0) + number(len(text)) + text + number(deadline_ms) + number(0) + variant + extensions
    body = b"\x01" + (1).to_bytes(4, "big") + message
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)  # without a timeout, so that it waits where many connect
        connection.settimeout(deadline_ms / 1000 + 1)
        connection.sendall(len(body).to_bytes(4, "big") + body)
        frames = Reader(connection.makefile("rb"))
        reply = Reader(io.BytesIO(frames.take(int.from_bytes(frames.take(4), "big"))))
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
    print(get_token(*sys.argv[1:3])["token"])
