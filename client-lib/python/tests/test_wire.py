"""The bytes of the protocol against its golden frames."""

from __future__ import annotations

import traceback
import unittest
from datetime import datetime, timezone
from typing import Any, Callable, Dict, Tuple

import tokend
from tokend import _wire as wire
from tokend.errors import CODES

from . import fake

SECRET = "2YotnFZFEjr1zCsicMWpAA"
FINGERPRINT = "0123456789abcdef"

#: The requests that the library makes, as the golden frames have them.
REQUESTS: Dict[str, Tuple[wire.Request, int]] = {
    "request-0-get.bin": (wire.get_request("psb", 30_000, wire.variant(["aisp"], ["connectapi"], [])), 5000),
    "request-1-headers.bin": (
        wire.headers_request("wealth", 30_000, {"Requestor-ID": "np-42"}, ["X-Trace"], wire.variant([], [], [])),
        5000,
    ),
    "request-2-list.bin": (wire.list_request(None), 0),
    "request-5-reject.bin": (wire.reject_request("psb", FINGERPRINT, wire.variant([], [], [])), 250),
    "request-7-version.bin": (wire.version_request(), 0),
}

#: The replies that the library reads, by their number.
READERS: Dict[int, Callable[[wire.Reader], Any]] = {
    wire.TOKEN: wire.token,
    wire.HEADERS: wire.headers,
    wire.LIST: wire.listing,
    wire.REJECTED: wire.rejected,
    wire.VERSION_REPLY: wire.version,
    wire.ERROR: wire.error,
}


def replies() -> Dict[str, bytes]:
    """The bodies of all golden replies of a kind that the library reads."""
    frames = {path.name: path.read_bytes() for path in fake.GOLDEN.glob("reply-*.bin")}
    return {name: frame[4:] for name, frame in frames.items() if int(name.split("-")[1]) in READERS}


def read(body: bytes) -> Any:
    """Reads a body as the reply that it says it is."""
    reader = wire.Reader(body)
    if wire.envelope(reader) != 1:
        raise ValueError("another request id")
    kind = body[5] if len(body) > 5 else wire.TOKEN
    return wire.reply(reader, kind, READERS.get(kind, wire.token))


class Golden(unittest.TestCase):
    def test_requests_are_the_golden_frames_byte_for_byte(self) -> None:
        for name, (request, deadline_ms) in REQUESTS.items():
            with self.subTest(name):
                self.assertEqual(wire.frame(1, request(deadline_ms)), fake.golden(name))

    def test_every_golden_request_of_a_kind_that_the_library_makes_is_compared(self) -> None:
        kinds = {name.split("-")[1] for name in REQUESTS}
        golden = {path.name for path in fake.GOLDEN.glob("request-*.bin") if path.name.split("-")[1] in kinds}
        self.assertEqual(golden, set(REQUESTS))

    def test_a_token_is_read(self) -> None:
        token = read(fake.golden("reply-0-token.bin")[4:])
        self.assertEqual((token.secret, token.authorization), (SECRET, f"Bearer {SECRET}"))
        self.assertEqual((token.token_type, token.scope), ("Bearer", "aisp pisp"))
        self.check_info(token)
        self.assertEqual((token.state, token.last_error), (tokend.State.FRESH, None))

    def test_headers_are_read(self) -> None:
        headers = read(fake.golden("reply-1-headers.bin")[4:])
        self.assertEqual(dict(headers), {"Authorization": f"Bearer {SECRET}", "Accept": "application/json"})
        self.check_info(headers.info)
        self.assertEqual(headers.info.state, tokend.State.DEGRADED)
        self.assertEqual(headers.info.last_error, tokend.ErrorClass.SERVER)

    def check_info(self, info: tokend.TokenInfo) -> None:
        self.assertEqual(info.fingerprint, FINGERPRINT)
        self.assertEqual(info.expires_at, datetime(2025, 11, 24, 17, tzinfo=timezone.utc))
        self.assertEqual(info.next_attempt, datetime(2025, 11, 24, 16, 48, tzinfo=timezone.utc))
        self.assertEqual(info._expires_at_boot, 90_000)

    def test_a_list_is_read(self) -> None:
        tokens, more = read(fake.golden("reply-2-list.bin")[4:])
        # The tokens have the names of their states.
        self.assertEqual([token.name for token in tokens], [state.value for state in tokend.State])
        self.assertEqual([token.state for token in tokens], list(tokend.State))
        self.assertTrue(more)

    def test_the_outcomes_of_a_rejection_are_read(self) -> None:
        for outcome in tokend.RejectOutcome:
            name = f"reply-5-rejected-{outcome.value}.bin"
            self.assertEqual(read(fake.golden(name)[4:])[0], outcome)
        names = [name for name in replies() if name.startswith("reply-5-")]
        self.assertEqual(len(names), len(tokend.RejectOutcome))

    def test_a_version_is_read(self) -> None:
        self.assertEqual(read(fake.golden("reply-7-version.bin")[4:]), ("0.1.0", 1, 1, 8))

    def test_every_error_code_has_a_class_of_its_name(self) -> None:
        names = [name for name in replies() if name.startswith("reply-8-error-")]
        self.assertEqual(len(names), len(CODES))
        for name in names:
            error = read(replies()[name])
            camel = "".join(word.capitalize() for word in name[len("reply-8-error-") : -len(".bin")].split("-"))
            self.assertEqual(type(error).__name__, camel)

    def test_the_details_of_an_error_are_read(self) -> None:
        error = read(fake.golden("reply-8-error.bin")[4:])
        self.assertIsInstance(error, tokend.MinTtlUnreachable)
        self.assertEqual(str(error), "no token lasts that long")
        self.assertEqual((error.error_class, error.best_ttl), (tokend.ErrorClass.THROTTLED, 60))
        self.assertEqual(error.next_attempt, datetime(2025, 11, 24, 16, 0, 30, tzinfo=timezone.utc))
        self.assertEqual(error.retry_after, 0)


class Hostile(unittest.TestCase):
    """No reply, however wrong, causes another exception than the library's own, or shows a secret."""

    def assert_refused(self, body: bytes) -> None:
        # Not with assertRaises, which clears the variables.
        try:
            read(body)
        except (tokend.ProtocolError, tokend.UnsupportedVersion) as error:
            self.assert_hidden(error)
        else:
            self.fail("it was not refused")

    def assert_hidden(self, error: BaseException) -> None:
        """The token is not in the exception, in its causes, or in the variables of the library's functions."""
        self.assertIsNone(error.__context__)
        shown = traceback.TracebackException.from_exception(error, capture_locals=True)
        ours = [frame for frame in shown.stack if "/tokend/" in frame.filename]
        self.assertTrue(ours)
        self.assertNotIn(SECRET, f"{error!r} {[frame.locals for frame in ours]}")

    def test_a_cut_reply_is_refused_wherever_it_is_cut(self) -> None:
        for name, body in replies().items():
            for size in range(len(body)):
                with self.subTest(name, size=size):
                    self.assert_refused(body[:size])

    def test_bytes_after_the_message_are_refused(self) -> None:
        for name, body in replies().items():
            with self.subTest(name):
                self.assert_refused(body + b"\0")

    def test_any_changed_byte_is_read_or_refused(self) -> None:
        for name, body in replies().items():
            for place in range(5, len(body)):
                for value in (0, 1, 0x7F, 0x80, 0xFA, 0xFB, 0xFC, 0xFD, 0xFE, 0xFF):
                    changed = body[:place] + bytes([value]) + body[place + 1 :]
                    with self.subTest(name, place=place, value=value):
                        try:
                            read(changed)
                        except tokend.ProtocolError as error:
                            self.assert_hidden(error)

    def test_text_that_is_not_unicode_is_refused_without_showing_it(self) -> None:
        body = fake.golden("reply-0-token.bin")[4:]
        self.assert_refused(body.replace(b"2Yotn", b"2Yot\xff"))

    def test_a_boolean_is_0_or_1(self) -> None:
        self.assert_refused(fake.golden("reply-2-list.bin")[4:-2] + b"\x02\0")

    def test_a_length_or_number_beyond_all_bounds_is_refused(self) -> None:
        start = fake.golden("reply-2-list.bin")[4:10]
        for size in (b"\xfd" + b"\xff" * 8, b"\xfe" + b"\xff" * 16, b"\xff", b"\xfc\xff\xff\xff\xff"):
            self.assert_refused(start + size)
        version = fake.golden("reply-7-version.bin")[4:-2]
        self.assert_refused(version + b"\xfd" + b"\1" * 8 + b"\0")

    def test_a_time_beyond_the_calendar_is_refused(self) -> None:
        start = fake.golden("reply-0-token.bin")[4:21]
        self.assertEqual(start[-1:], b"\xfd")
        self.assert_refused(start + b"\xff" * 8 + b"\0" * 20)

    def test_longer_forms_of_numbers_and_unknown_extensions_are_accepted(self) -> None:
        version = fake.golden("reply-7-version.bin")[4:-2]
        extensions = b"\x02" + b"\x05\x03abc" + b"\xfb\xff\xff\x00"
        for highest in (b"\x08", b"\xfb\x08\0", b"\xfc\x08\0\0\0"):
            self.assertEqual(read(version + highest + extensions).highest_request, 8)

    def test_another_version_of_the_protocol_says_so(self) -> None:
        with self.assertRaisesRegex(tokend.UnsupportedVersion, "version 2"):
            read(b"\x02\0\0\0\x01\x07")


class Requests(unittest.TestCase):
    def test_a_bad_name_is_refused(self) -> None:
        for name in ("", "../etc/passwd", "-x", "a b", "psb\n", "ä", "x" * 256):
            with self.subTest(name), self.assertRaises(tokend.InvalidRequest):
                wire.name(name)
        wire.name("a-Z.0_@:+" + "x" * 246)

    def test_one_string_in_place_of_a_list_is_an_error(self) -> None:
        with self.assertRaisesRegex(TypeError, "scope is a list"):
            wire.variant("aisp", [], [])

    def test_a_request_above_the_limit_is_not_sent(self) -> None:
        headers = {"X": "x" * 16_384}
        with self.assertRaisesRegex(tokend.InvalidRequest, "16384"):
            wire.frame(1, wire.headers_request("psb", 0, headers, [], b"\0\0\0")(0))

    def test_a_text_without_utf_8_is_refused_without_showing_it(self) -> None:
        with self.assertRaises(tokend.InvalidRequest) as caught:
            wire.headers_request("psb", 0, {"X": "personal\udc80"}, [], b"\0\0\0")
        self.assertNotIn("personal", repr(caught.exception))
        self.assertIsNone(caught.exception.__context__)

    def test_a_fingerprint_has_16_digits(self) -> None:
        for text in ("", "0123", "0123456789ABCDEF", "0123456789abcdeg", "0123456789abcdef0"):
            with self.subTest(text), self.assertRaises(tokend.InvalidRequest):
                wire.reject_request("psb", text, b"\0\0\0")


if __name__ == "__main__":
    unittest.main()
