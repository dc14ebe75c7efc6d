"""The client against a daemon that the test plays."""

from __future__ import annotations

import copy
import os
import pickle
import socket
import threading
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, List
from unittest import mock

import tokend
from tokend import _client

from . import fake

SECRET = "very-secret-token"


def token_of(asked: bytes) -> bytes:
    """Answers a Get with a token that is named after the one that was asked for."""
    name = asked[2 : 2 + asked[1]].decode()
    return fake.token(f"{SECRET}-{name}")


def always(answer: fake.Answer) -> Callable[[bytes], fake.Answer]:
    return lambda _asked: answer


def in_turn(*answers: fake.Answer) -> Callable[[bytes], fake.Answer]:
    """Each answer once, then the last one for ever."""
    left = list(answers)
    return lambda _asked: left.pop(0) if len(left) > 1 else left[0]


class ClientTest(unittest.TestCase):
    def start(self, answer: Callable[[bytes], fake.Answer], deadline: float = fake.PATIENCE) -> tokend.Client:
        self.daemon = fake.FakeDaemon(answer, fake.socket_path(self))
        self.addCleanup(self.daemon.stop)
        client = tokend.Client(self.daemon.path, deadline)
        self.addCleanup(client.close)
        return client

    def restart(self, answer: Callable[[bytes], fake.Answer]) -> None:
        """Stops the daemon. Its successor comes when the client waits for it."""
        path = self.daemon.path
        self.daemon.stop()

        def sleep(_seconds: float) -> None:
            if not os.path.exists(path):
                self.daemon = fake.FakeDaemon(answer, path)
                self.addCleanup(self.daemon.stop)

        patch = mock.patch.object(time, "sleep", sleep)
        patch.start()
        self.addCleanup(patch.stop)


class Calls(ClientTest):
    def test_a_token_is_returned(self) -> None:
        client = self.start(token_of)
        token = client.get("psb", min_ttl=30, scope=["aisp"], deadline=5)
        self.assertEqual(token.secret, f"{SECRET}-psb")
        self.assertGreater(token.remaining, 0)
        asked = self.daemon.messages[0]
        self.assertTrue(asked.startswith(b"\0\x03psb\xfb"), asked)
        deadline = int.from_bytes(asked[6:8], "little")
        self.assertTrue(4000 < deadline <= 5000, deadline)
        self.assertTrue(asked.endswith(b"\xfb\x30\x75" + b"\x01\x04aisp" + b"\0\0\0"), asked)

    def test_without_a_deadline_of_its_own_a_call_has_that_of_the_client(self) -> None:
        client = self.start(token_of, deadline=0)
        client.get("t")
        self.assertEqual(self.daemon.messages[0], b"\0\x01t\0\0\0\0\0\0")

    def test_a_minimal_lifetime_is_rounded_up_and_saturates(self) -> None:
        for seconds, millis in ((0, 0), (-1, 0), (0.0001, 1), (60.123, 60_123), (1e12, 0xFFFF_FFFF)):
            self.assertEqual(_client.milliseconds(seconds), millis)

    def test_headers_are_a_mapping(self) -> None:
        client = self.start(always(fake.message("reply-1-headers.bin")))
        headers = client.headers("wealth", {"Requestor-ID": "np-42"}, omit=["X-Trace"])
        self.assertEqual(list(headers), ["Authorization", "Accept"])
        self.assertEqual(headers["Accept"], "application/json")
        self.assertEqual(headers.fingerprint, "0123456789abcdef")
        self.assertIn(b"\x01\x0cRequestor-ID\x05np-42\x01\x07X-Trace", self.daemon.messages[0])

    def test_a_rejection_says_whether_there_is_another_token(self) -> None:
        client = self.start(always(fake.rejected("0123456789abcdef")))
        self.assertFalse(client.reject("t", "0123456789abcdef").is_new)
        rejection = client.reject("t", "f" * 16)
        self.assertTrue(rejection.is_new)
        self.assertEqual(rejection.outcome, tokend.RejectOutcome.REPLACED)

    def test_the_pages_of_a_list_are_joined(self) -> None:
        pages = [b"\x02\x01\x01a\0\x01\0", b"\x02\x01\x01b\x04\0\0"]
        client = self.start(in_turn(*pages))
        self.assertEqual(client.list(), [("a", tokend.State.FRESH), ("b", tokend.State.UNAVAILABLE)])
        self.assertEqual(self.daemon.messages, [b"\x02\0\0", b"\x02\x01\x01a\0"])

    def test_a_list_without_end_is_an_error(self) -> None:
        for page in (b"\x02\x01\x01a\0\x01\0", b"\x02\0\x01\0"):
            client = self.start(always(page))
            with self.assertRaises(tokend.ProtocolError):
                client.list()

    def test_the_version_is_returned(self) -> None:
        client = self.start(always(fake.message("reply-7-version.bin")))
        self.assertEqual(client.version().daemon, "0.1.0")

    def test_the_socket_is_an_argument_or_a_variable_or_the_default(self) -> None:
        with mock.patch.dict(os.environ, {"TOKEND_SOCKET": "/named"}):
            self.assertEqual(tokend.Client().socket, "/named")
            self.assertEqual(tokend.Client("/given").socket, "/given")
        for unset in ({"TOKEND_SOCKET": ""}, {}):
            with mock.patch.dict(os.environ, unset, clear=True):
                self.assertEqual(tokend.Client().socket, "/run/tokend/tokend.sock")

    def test_an_error_has_its_class_and_says_when_to_try_again(self) -> None:
        soon = int((time.time() + 1000) * 1000)
        unavailable = b"\x08\x02\x04down\0\x01\xfd" + soon.to_bytes(8, "little") + b"\0\0"
        client = self.start(in_turn(unavailable, fake.error(0, "not allowed")))
        with self.assertRaises(tokend.Unavailable) as caught:
            client.get("t")
        error = pickle.loads(pickle.dumps(caught.exception))
        self.assertEqual((str(error), error.retryable), ("down", True))
        assert error.retry_after is not None
        self.assertTrue(0 < error.retry_after <= 1000)
        with self.assertRaises(tokend.NotAllowed) as refused:
            client.get("t")
        self.assertEqual((refused.exception.retryable, refused.exception.retry_after), (False, None))
        self.assertEqual(len(self.daemon.peers), 1, "an error leaves the connection in use")


class Secrecy(ClientTest):
    def test_no_text_or_pickle_has_the_secret(self) -> None:
        client = self.start(in_turn(token_of(b"\0\x01t"), fake.message("reply-1-headers.bin")))
        token, headers = client.get("t"), client.headers("t")
        shown = f"{token} {token!r} {vars(token)} {headers} {headers!r} {vars(headers)} {client!r}"
        for secret in (token.secret, headers["Authorization"], headers["Accept"]):
            self.assertNotIn(secret, shown)
        for hidden in (token, headers, [token]):
            for copied in (pickle.dumps, copy.deepcopy):
                with self.subTest(copied), self.assertRaisesRegex(TypeError, "not pickled"):
                    copied(hidden)


class Restarts(ClientTest):
    def test_a_connection_is_used_again(self) -> None:
        client = self.start(token_of)
        for _ in range(3):
            client.get("t")
        self.assertEqual(len(self.daemon.peers), 1)
        self.assertEqual(self.daemon.ids, [1, 2, 3])

    def test_a_call_waits_for_a_daemon_that_restarts(self) -> None:
        client = self.start(token_of)
        client.get("t")
        self.restart(token_of)
        self.assertEqual(client.get("u").secret, f"{SECRET}-u")

    def test_a_call_that_the_restart_interrupts_is_repeated(self) -> None:
        client = self.start(in_turn(None, fake.token("second")))
        self.assertEqual(client.get("t").secret, "second")
        self.assertEqual(len(self.daemon.messages), 2)

    def test_a_call_is_repeated_once_and_no_more(self) -> None:
        client = self.start(always(None))
        with self.assertRaisesRegex(tokend.NotReachable, "closed the connection"):
            client.get("t")
        self.assertEqual(len(self.daemon.messages), 2)

    def test_a_daemon_that_stops_or_closes_the_connection_with_a_reason_is_asked_again(self) -> None:
        of_all = fake.Raw(fake.reply(0, fake.error(7, "too many connections")))
        for first in (fake.error(9, "the daemon is stopping"), of_all):
            client = self.start(in_turn(first, fake.token("second")))
            self.assertEqual(client.get("t").secret, "second")
        client = self.start(always(of_all))
        with self.assertRaisesRegex(tokend.Overloaded, "too many connections"):
            client.get("t")

    def test_the_reason_is_read_that_was_sent_before_the_connection_was_closed(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.sendall(fake.reply(0, fake.error(7, "too many connections")))
        connection = _client.Connection(ours, "/unused")
        with self.assertRaises(_client.Gone) as caught:
            connection.exchange(b"\x07", _client.Deadline(fake.PATIENCE))
        self.assertIsInstance(caught.exception.error, tokend.Overloaded)

    def test_an_old_error_on_an_idle_connection_is_not_the_answer(self) -> None:
        client = self.start(token_of)
        client.get("t")
        self.daemon.send_to_all(fake.reply(0, fake.error(7, "old")))
        self.assertEqual(client.get("t").secret, f"{SECRET}-t")

    def test_without_a_daemon_a_call_fails_at_once_and_says_what_to_check(self) -> None:
        client = self.start(token_of)
        self.daemon.stop()
        with mock.patch.object(time, "sleep", side_effect=AssertionError("it waits")):
            with self.assertRaisesRegex(tokend.NotReachable, "check that tokend runs.*TOKEND_SOCKET"):
                client.get("t")

    def test_a_socket_that_the_user_may_not_open_says_so(self) -> None:
        client = self.start(token_of)
        with mock.patch("socket.socket.connect", side_effect=PermissionError(13, "Permission denied")):
            with self.assertRaisesRegex(tokend.NotReachable, "group of the socket"):
                client.get("t")

    def test_a_daemon_that_does_not_return_is_given_up(self) -> None:
        client = self.start(token_of)
        client.get("t")
        self.daemon.stop()
        waits: List[float] = []
        with mock.patch.object(time, "sleep", waits.append):
            # The second call does not wait.
            for _ in range(2):
                with self.assertRaises(tokend.NotReachable):
                    client.get("t")
        self.assertEqual(tuple(waits), _client.RETURN_WAITS)

    def test_a_full_queue_of_connections_is_waited_for(self) -> None:
        path = fake.socket_path(self)
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
            listener.bind(path)
            listener.listen(0)
            first.connect(path)

            def sleep(seconds: float) -> None:
                # Makes room in the queue.
                self.assertEqual(seconds, _client.QUEUE_WAIT)
                listener.accept()[0].close()

            with mock.patch.object(time, "sleep", sleep):
                connection = tokend.Client(path)._connect(_client.Deadline(fake.PATIENCE))
            connection.close()


class Hostile(ClientTest):
    """A wrong answer is an error, and never a call that does not end."""

    def fails(self, answer: fake.Answer, kind: type, text: str = "", deadline: float = fake.PATIENCE) -> None:
        client = self.start(always(answer), deadline)
        with self.assertRaisesRegex(kind, text):
            client.get("t")

    def test_an_answer_that_is_too_large_is_refused_before_it_is_read(self) -> None:
        self.fails(fake.Raw(b"\0\x04\0\x01"), tokend.ProtocolError, "262145 bytes")
        self.fails(fake.Raw(b"HTTP/1.1 400 Bad Request\r\n\r\n"), tokend.ProtocolError, "exceeds the limit")

    def test_an_answer_that_is_cut_is_an_error(self) -> None:
        whole = fake.reply(1, fake.token(SECRET))
        for size in (1, 4, 20, len(whole) - 1):
            self.fails(fake.Raw(whole[:size]), tokend.NotReachable, "closed the connection")

    def test_a_body_without_envelope_is_an_error(self) -> None:
        self.fails(fake.Raw(b"\0\0\0\0"), tokend.ProtocolError)
        self.fails(fake.Raw(b"\0\0\0\x01\x01"), tokend.ProtocolError)
        self.fails(fake.Raw(b"\0\0\0\x01\x07"), tokend.UnsupportedVersion)

    def test_the_answer_to_another_kind_of_request_is_an_error(self) -> None:
        self.fails(fake.message("reply-7-version.bin"), tokend.ProtocolError, "another request")

    def test_after_an_answer_that_is_not_understood_the_connection_is_not_used_again(self) -> None:
        client = self.start(in_turn(b"\x63\0", fake.token("second")))
        with self.assertRaises(tokend.ProtocolError):
            client.get("t")
        self.assertEqual(client.get("t").secret, "second")
        self.assertEqual(len(self.daemon.peers), 2)

    def test_a_failed_call_closes_its_connection_even_if_the_error_is_kept(self) -> None:
        client = self.start(always(b"\x63\0"))
        try:
            client.get("t")
        except tokend.ProtocolError as error:
            self.assertIsNotNone(error.__traceback__)
            self.assertTrue(self.daemon.ended.acquire(timeout=fake.PATIENCE))

    def test_a_silent_daemon_costs_no_more_than_the_deadline(self) -> None:
        released = threading.Event()
        self.addCleanup(released.set)
        client = self.start(lambda _: None if released.wait(fake.PATIENCE) else None, deadline=0)
        with self.assertRaisesRegex(tokend.DeadlineExceeded, "did not answer"):
            client.get("t")

    def test_other_answers_without_end_cost_no_more_than_the_deadline(self) -> None:
        stopped = threading.Event()
        self.addCleanup(stopped.set)

        def flood(_asked: bytes) -> fake.Answer:
            while not stopped.is_set():
                try:
                    self.daemon.send_to_all(fake.reply(77, fake.token(SECRET)))
                except OSError:
                    break
            return None

        with self.assertRaises(tokend.DeadlineExceeded):
            self.start(flood, deadline=0).get("t")

    def test_an_answer_after_a_given_up_call_is_not_mistaken_for_the_next_one(self) -> None:
        late = fake.reply(77, fake.token("late"))
        client = self.start(lambda asked: fake.Raw(late + fake.reply(1, token_of(asked))))
        self.assertEqual(client.get("t").secret, f"{SECRET}-t")

    def test_an_interrupted_call_leaves_no_half_read_answer_behind(self) -> None:
        client = self.start(token_of)
        with mock.patch.object(_client.Connection, "_read", side_effect=KeyboardInterrupt):
            with self.assertRaises(KeyboardInterrupt):
                client.get("first")
        self.assertEqual(client.get("second").secret, f"{SECRET}-second")
        self.assertEqual(len(self.daemon.peers), 2)


class Sharing(ClientTest):
    def test_threads_get_their_own_answers(self) -> None:
        client = self.start(token_of)
        names = [f"t{number}" for number in range(400)]
        with ThreadPoolExecutor(16) as pool:
            tokens = list(pool.map(client.get, names))
        self.assertEqual([token.secret for token in tokens], [f"{SECRET}-{name}" for name in names])
        self.assertLessEqual(len(client._idle), _client.IDLE_MAX)

    def test_a_forked_process_opens_its_own_connection(self) -> None:
        client = self.start(token_of)
        client.get("t")
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = 0 if client.get("u").secret == f"{SECRET}-u" else 2
            finally:
                os._exit(status)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0)
        self.assertEqual(client.get("t").secret, f"{SECRET}-t")
        self.assertEqual(self.daemon.peers, [os.getpid(), child])

    def test_closing_ends_the_idle_connections(self) -> None:
        with self.start(token_of) as client:
            client.get("t")
            self.assertEqual(len(client._idle), 1)
        self.assertEqual(len(client._idle), 0)
        client.get("t")
        self.assertEqual(len(self.daemon.peers), 2)


if __name__ == "__main__":
    unittest.main()
