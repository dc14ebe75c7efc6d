#!/usr/bin/env python3
"""Calls an HTTP API once a second with a token of tokend, and prints how the API answers.

The daemon may renew the token, the API may refuse it, and the daemon may be restarted: the program goes on.

    $ python3 service.py psb https://api.example/accounts
    200, with the token 01f7c2d49a8b3e60
"""

import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

# Only because the library is not installed here.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tokend


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an error, so that the headers go to no other host: `urllib` would send them there."""

    def redirect_request(self, *_: object) -> None:
        return None


http = urllib.request.build_opener(NoRedirects)


def send(url: str, headers: tokend.Headers) -> int:
    """One HTTP request: the status."""
    try:
        with http.open(urllib.request.Request(url, headers=dict(headers)), timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def call(client: tokend.Client, name: str, url: str) -> str:
    """One call of the API."""
    headers = client.headers(name)
    status = send(url, headers)
    # The API refuses a token that should be valid. One more attempt, if there is another token.
    if status == 401 and client.reject(name, headers.fingerprint).is_new:
        headers = client.headers(name)
        status = send(url, headers)
    return f"{status}, with the token {headers.fingerprint}"


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("usage: service.py TOKEN URL")
    name, url = sys.argv[1:]
    client = tokend.Client()
    while True:
        try:
            print(call(client, name, url), flush=True)
        except tokend.Error as error:
            print(f"{name}: {error}", file=sys.stderr)
            if not error.retryable:
                sys.exit(1)
        except OSError as error:
            print(f"{url}: {error}", file=sys.stderr)
        time.sleep(1)


if __name__ == "__main__":
    main()
