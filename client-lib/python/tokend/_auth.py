"""The part of the authentication classes that does not depend on the HTTP client."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from ._client import Client
from .errors import Error
from ._types import Token


class TokenCalls:
    """The calls about one token, for the requests of an HTTP client."""

    def __init__(
        self,
        name: str,
        client: Optional[Client] = None,
        *,
        min_ttl: float = 0.0,
        scope: Sequence[str] = (),
        resource: Sequence[str] = (),
        audience: Sequence[str] = (),
    ) -> None:
        self._name = name
        self._client = client or Client()
        self._min_ttl = min_ttl
        self._scope, self._resource, self._audience = scope, resource, audience

    def _get(self) -> Token:
        return self._client.get(
            self._name,
            min_ttl=self._min_ttl,
            scope=self._scope,
            resource=self._resource,
            audience=self._audience,
        )

    def _another(self, refused: Token) -> Optional[Token]:
        """Reports that an API refused the token: another token, or None if there is none. Then the 401 stands."""
        try:
            rejection = self._client.reject(
                self._name,
                refused.fingerprint,
                scope=self._scope,
                resource=self._resource,
                audience=self._audience,
            )
            return self._get() if rejection.is_new else None
        except Error:
            return None
