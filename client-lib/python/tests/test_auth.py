"""The authentication classes for HTTP clients, against an API and a daemon that the test plays."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import threading
import unittest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Dict, List, NamedTuple, Optional, Set

import tokend

from . import fake

HAS_REQUESTS = importlib.util.find_spec("requests") is not None
HAS_HTTPX = importlib.util.find_spec("httpx") is not None


class Call(NamedTuple):
    """A call that an API got."""

    method: str
    path: str
    authorization: Optional[str]
    body: str


class Api:
    """An API that accepts some tokens and answers others with 401.

    It redirects `/to/URL` to the URL, and `/checked/URL` only with a token that it accepts.
    """

    def __init__(self, test: unittest.TestCase) -> None:
        self.accepted: Set[str] = set()
        self.calls: List[Call] = []
        calls, accepted = self.calls, self.accepted

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
                authorization = self.headers.get("Authorization")
                calls.append(Call(self.command, self.path, authorization, body))
                _, kind, location = f"{self.path}/".split("/", 2)
                is_accepted = authorization in [f"Bearer {token}" for token in accepted]
                is_redirect = kind == "to" or (kind == "checked" and is_accepted)
                self.send_response(307 if is_redirect else 200 if is_accepted else 401)
                if is_redirect:
                    self.send_header("Location", location.rstrip("/"))
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            do_POST = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        test.addCleanup(self._server.server_close)
        test.addCleanup(self._server.shutdown)

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self._server.server_port}{path}"

    def authorizations(self) -> List[Optional[str]]:
        return [call.authorization for call in self.calls]


class AuthTests:
    """The tests that all HTTP clients pass."""

    # Each subclass is a `unittest.TestCase` too.
    assertEqual: Any
    addCleanup: Any

    def setUp(self) -> None:
        self.api = Api(self)  # type: ignore[arg-type]
        self.current = 1
        self.renews = True
        self.fails = False
        self.daemon = fake.FakeDaemon(self.answer, fake.socket_path(self))  # type: ignore[arg-type]
        self.addCleanup(self.daemon.stop)
        self.client = tokend.Client(self.daemon.path, fake.PATIENCE)
        self.addCleanup(self.client.close)

    def answer(self, asked: bytes) -> bytes:
        """Plays a daemon whose first token is `token-1`; a rejection of the current one brings the next."""
        if asked[0] == 5 and self.fails:
            return fake.error(2, "unavailable")
        if asked[0] == 5:
            refused = asked[5:13].hex()
            self.current += self.renews and refused == f"{self.current:016x}"
            return fake.rejected(f"{self.current:016x}")
        return fake.token(f"token-{self.current}", f"{self.current:016x}")

    def rejections(self) -> int:
        return sum(message[0] == 5 for message in self.daemon.messages)

    def call(self, method: str, url: str, **arguments: Any) -> int:
        """Calls the API with `TokenAuth`, following redirects: the status."""
        raise NotImplementedError

    def test_the_token_is_in_the_header(self) -> None:
        self.api.accepted.add("token-1")
        self.assertEqual(self.call("GET", self.api.url("/")), 200)
        self.assertEqual(self.api.authorizations(), ["Bearer token-1"])
        self.assertEqual(self.rejections(), 0)

    def test_a_refused_token_is_reported_and_the_request_repeated_with_its_body(self) -> None:
        self.api.accepted.add("token-2")
        self.assertEqual(self.call("POST", self.api.url("/pay"), data={"amount": "5"}), 200)
        calls = [Call("POST", "/pay", f"Bearer token-{number}", "amount=5") for number in (1, 2)]
        self.assertEqual(self.api.calls, calls)
        self.assertEqual(self.rejections(), 1)

    def test_a_request_is_repeated_once_and_no_more(self) -> None:
        self.assertEqual(self.call("GET", self.api.url("/")), 401)
        self.assertEqual(self.api.authorizations(), ["Bearer token-1", "Bearer token-2"])

    def test_without_another_token_the_request_is_not_repeated(self) -> None:
        self.renews = False
        self.assertEqual(self.call("GET", self.api.url("/")), 401)
        self.assertEqual((len(self.api.calls), self.rejections()), (1, 1))

    def test_a_rejection_that_fails_leaves_the_401_to_the_caller(self) -> None:
        self.fails = True
        self.assertEqual(self.call("GET", self.api.url("/")), 401)
        self.assertEqual((len(self.api.calls), self.rejections()), (1, 1))

    def test_a_body_that_cannot_be_repeated_is_sent_once_but_the_token_is_reported(self) -> None:
        self.assertEqual(self.call("POST", self.api.url("/"), **self.stream()), 401)
        self.assertEqual((len(self.api.calls), self.rejections()), (1, 1))
        self.assertEqual(self.current, 2)

    def stream(self) -> Dict[str, Any]:
        """The argument for a body that can be read once."""
        raise NotImplementedError

    def test_a_redirect_to_another_host_or_port_gets_no_token(self) -> None:
        other = Api(self)  # type: ignore[arg-type]
        for url in (other.url("/"), self.api.url("/", host="localhost"), other.url("/", host="localhost")):
            self.assertEqual(self.call("GET", self.api.url(f"/to/{url}")), 401)
        self.assertEqual(other.authorizations(), [None, None])
        self.assertEqual([call.authorization for call in self.api.calls if call.path == "/"], [None])
        # The other host's 401 says nothing about the token.
        self.assertEqual(self.rejections(), 0)

    def test_a_redirect_after_a_repeated_request_has_the_new_token_on_the_same_host_only(self) -> None:
        other = Api(self)  # type: ignore[arg-type]
        self.api.accepted.add("token-2")
        self.assertEqual(self.call("GET", self.api.url("/checked/") + self.api.url("/done")), 200)
        expected = ["Bearer token-1", "Bearer token-2", "Bearer token-2"]
        self.assertEqual(self.api.authorizations(), expected)
        self.current = 1
        self.assertEqual(self.call("GET", self.api.url("/checked/") + other.url("/done")), 401)
        self.assertEqual(other.authorizations(), [None])
        self.assertEqual(self.api.authorizations(), expected + expected[:2])

    def test_a_redirect_on_the_same_host_keeps_the_token_and_a_401_after_it_is_handled(self) -> None:
        self.api.accepted.add("token-2")
        self.assertEqual(self.call("POST", self.api.url("/to/") + self.api.url("/pay"), data={"a": "b"}), 200)
        to = f"/to/{self.api.url('/pay')}"
        expected = [(to, "Bearer token-1"), ("/pay", "Bearer token-1"), ("/pay", "Bearer token-2")]
        self.assertEqual([(call.path, call.authorization) for call in self.api.calls], expected)
        self.assertEqual({call.body for call in self.api.calls}, {"a=b"})

    def test_an_error_of_the_daemon_is_the_caller_s(self) -> None:
        self.daemon.stop()
        try:
            self.call("GET", self.api.url("/"))
        except tokend.NotReachable:
            self.assertEqual(self.api.calls, [])
        else:
            raise AssertionError("there was no daemon")


@unittest.skipUnless(HAS_REQUESTS, "the package requests is not installed")
class Requests(AuthTests, unittest.TestCase):
    def setUp(self) -> None:
        super().setUp()
        import requests
        import tokend.requests

        self.session = requests.Session()
        self.addCleanup(self.session.close)
        self.auth = tokend.requests.TokenAuth("psb", self.client)

    def call(self, method: str, url: str, **arguments: Any) -> int:
        return self.session.request(method, url, auth=self.auth, timeout=fake.PATIENCE, **arguments).status_code

    def stream(self) -> Dict[str, Any]:
        class Once(io.BytesIO):
            """A body of known length that cannot be rewound."""

            def seek(self, *_: Any) -> int:
                raise OSError("not seekable")

            def tell(self) -> int:
                raise OSError("not seekable")

        return {"data": Once(b"amount"), "headers": {"Content-Length": "6"}}

    def test_a_file_is_sent_again_from_its_beginning(self) -> None:
        self.api.accepted.add("token-2")
        self.assertEqual(self.call("POST", self.api.url("/"), data=io.BytesIO(b"amount=5")), 200)
        self.assertEqual([call.body for call in self.api.calls], ["amount=5"] * 2)

    def test_a_session_has_it_for_all_its_requests(self) -> None:
        self.api.accepted.add("token-1")
        self.session.auth = self.auth
        for _ in range(2):
            self.assertEqual(self.session.get(self.api.url("/"), timeout=fake.PATIENCE).status_code, 200)

    def test_the_first_answer_is_in_the_history(self) -> None:
        self.api.accepted.add("token-2")
        response = self.session.get(self.api.url("/"), auth=self.auth, timeout=fake.PATIENCE)
        self.assertEqual([answer.status_code for answer in (*response.history, response)], [401, 200])


@unittest.skipUnless(HAS_HTTPX, "the package httpx is not installed")
class Httpx(AuthTests, unittest.TestCase):
    def setUp(self) -> None:
        super().setUp()
        import httpx
        import tokend.httpx

        self.auth = tokend.httpx.TokenAuth("psb", self.client)
        self.http = httpx.Client(auth=self.auth, follow_redirects=True, timeout=fake.PATIENCE, trust_env=False)
        self.addCleanup(self.http.close)

    def call(self, method: str, url: str, **arguments: Any) -> int:
        return self.http.request(method, url, **arguments).status_code

    def stream(self) -> Dict[str, Any]:
        return {"content": iter([b"amount"]), "headers": {"Content-Length": "6"}}


@unittest.skipUnless(HAS_HTTPX, "the package httpx is not installed")
class AsyncHttpx(AuthTests, unittest.TestCase):
    def setUp(self) -> None:
        super().setUp()
        import tokend.httpx

        self.auth = tokend.httpx.TokenAuth("psb", self.client)

    def call(self, method: str, url: str, **arguments: Any) -> int:
        return asyncio.run(self.call_async(method, url, **arguments))

    async def call_async(self, method: str, url: str, **arguments: Any) -> int:
        import httpx

        settings: Any = {"auth": self.auth, "follow_redirects": True, "timeout": fake.PATIENCE, "trust_env": False}
        async with httpx.AsyncClient(**settings) as http:
            return (await http.request(method, url, **arguments)).status_code

    def stream(self) -> Dict[str, Any]:
        async def pieces() -> Any:
            yield b"amount"

        return {"content": pieces(), "headers": {"Content-Length": "6"}}


if __name__ == "__main__":
    unittest.main()
