"""Calls an HTTP API with a token of tokend: python3 call_api.py TOKEN URL."""

import sys
import urllib.error
import urllib.request

import tokend


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an error, so that the headers go to no other host."""

    def redirect_request(self, *_):
        return None


def call(url, headers):
    request = urllib.request.Request(url, headers=dict(headers))
    try:
        with urllib.request.build_opener(NoRedirects).open(request, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


name, url = sys.argv[1:]
client = tokend.Client()
headers = client.headers(name)
status, body = call(url, headers)
# The API refuses a token that should be valid. One more attempt, if there is another token.
if status == 401 and client.reject(name, headers.fingerprint).is_new:
    status, body = call(url, client.headers(name))
print(status, body)
