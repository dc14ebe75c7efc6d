"""Authentication for the HTTP client `requests`."""

from __future__ import annotations

from typing import Any

import requests
from requests.auth import AuthBase
from requests.exceptions import UnrewindableBodyError
from requests.utils import rewind_body

from ._auth import TokenCalls
from ._types import Token

__all__ = ["TokenAuth"]


class TokenAuth(TokenCalls, AuthBase):
    """Adds the `Authorization` header with the token: `requests.get(url, auth=TokenAuth("psb"))`.

    Make one for each token, and use it for all requests; threads may share it. If the API answers 401, the token is
    reported to the daemon, and the request is sent once more with another token, if there is one and the body can be
    repeated.

    The token goes to no other host: `requests` removes the header when a redirect leads to another host, port or scheme
    (other than from http to https on the same host), and an answer to a request without the token is not handled here.
    """

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        token = self._get()

        def on_response(response: requests.Response, **arguments: Any) -> requests.Response:
            nonlocal token
            request = response.request
            if response.status_code != 401 or request.headers.get("Authorization") != token.authorization:
                return response
            another = self._another(token)
            if another is None or not rewound(request):
                return response
            token = another
            # Redirects after the answer copy this request, so its own header is changed.
            authorize(request, token)
            # Lets the connection be used again.
            _ = response.content
            repeated: requests.Response = response.connection.send(request, **arguments)
            repeated.history.append(response)
            return repeated

        authorize(request, token)
        request.register_hook("response", on_response)
        return request


def authorize(request: requests.PreparedRequest, token: Token) -> None:
    request.headers["Authorization"] = token.authorization


def rewound(request: requests.PreparedRequest) -> bool:
    """Whether the body can be sent again. The body of a file is at its beginning then."""
    if request.body is None or isinstance(request.body, (str, bytes, bytearray)):
        return True
    try:
        rewind_body(request)
    except UnrewindableBodyError:
        return False
    return True
