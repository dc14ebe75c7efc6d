"""Authentication for the HTTP client `httpx`, blocking and async."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator

import anyio.to_thread  # a dependency of httpx
import httpx

from ._auth import TokenCalls
from ._types import Token

__all__ = ["TokenAuth"]


class TokenAuth(TokenCalls, httpx.Auth):
    """Adds the `Authorization` header with the token: `httpx.Client(auth=TokenAuth("psb"))`, or `httpx.AsyncClient`.

    Make one for each token, and use it for all requests. If the API answers 401, the token is reported to the daemon, and
    the request is sent once more with another token, if there is one and the body can be repeated.

    The token goes to no other host: `httpx` removes the header when a redirect leads to another host, port or scheme
    (other than from http to https on the same host), and an answer to a request without the token is not handled here.
    """

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        token = self._get()
        authorize(request, token)
        response = yield request
        if is_refused(response, token):
            another = self._another(token)
            if another is not None and is_repeatable(response.request):
                authorize(response.request, another)
                yield response.request

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        # In a thread, because the daemon may have to wait for the provider.
        token = await anyio.to_thread.run_sync(self._get)
        authorize(request, token)
        response = yield request
        if is_refused(response, token):
            another = await anyio.to_thread.run_sync(self._another, token)
            if another is not None and is_repeatable(response.request):
                authorize(response.request, another)
                yield response.request


def authorize(request: httpx.Request, token: Token) -> None:
    request.headers["Authorization"] = token.authorization


def is_refused(response: httpx.Response, token: Token) -> bool:
    """Whether an API refused this token. After redirects, the answer may be to a request without it."""
    return response.status_code == 401 and response.request.headers.get("Authorization") == token.authorization


def is_repeatable(request: httpx.Request) -> bool:
    """Whether the body is in memory, so that it can be sent again."""
    return isinstance(request.stream, httpx.ByteStream)
