//! The wire protocol of tokend: its specification, and the types and codecs that implement it.
//!
//! This page is the specification. It is complete enough to write a client in another language; the bytes
//! shown on it are compared with the frames in `protocol/tests/golden` by a test. Words in `code` are the
//! names of types and fields in this crate, which are the reference for what a field means.
//!
//! The crate does no I/O of its own, knows no clock and no policy. [`encode`] and [`decode`] are the core;
//! [`write_frame`] and [`read_frame`] put them over [`std::io`], and `Codec` (feature `tokio`) over
//! `tokio_util::codec::Framed`.
//!
//! # Transport
//!
//! A Unix stream socket, by default `/run/tokend/tokend.sock`. There is no handshake: the caller connects and
//! sends its first request. The daemon takes who is asking from the kernel, as it was when the connection was
//! made; so whoever is given an open connection has the rights of the process that opened it, for as long as that
//! process lives: when it ends, the daemon closes the connection.
//!
//! A connection is kept open for as long as the caller likes, and carries any number of requests, one after
//! the other or many in flight. A caller that has shut down its writing side still gets the answers to what it
//! sent.
//!
//! # Frames
//!
//! | bytes | field | form |
//! | --- | --- | --- |
//! | 4 | length of the body | unsigned, big-endian |
//! | | the body: | |
//! | 1 | protocol version, 1 | |
//! | 4 | request id | unsigned, big-endian |
//! | rest | the message: a [`Request`] from the caller, a [`Reply`] from the daemon | see below |
//!
//! The length counts the body alone, so it is at least 5. It is at most 16,384 in a request
//! ([`REQUEST_MAX`]) and 262,144 in a reply ([`REPLY_MAX`]). The message fills the body to its last byte.
//!
//! The **request id** is chosen by the caller, other than 0, and repeated in every answer to the request. It
//! can be used again once the request has been answered. The daemon does not check that it is unique: answers
//! to two requests with one id cannot be told apart.
//!
//! # Encoding of a message
//!
//! A message is encoded as bincode 2 does in its standard configuration. All of it:
//!
//! | type | bytes |
//! | --- | --- |
//! | `u8` | itself |
//! | `bool` | 00 false, 01 true; nothing else is valid |
//! | `u32`, `u64` | below 251: one byte. Else `fb` and 2 bytes, `fc` and 4 bytes, or (`u64` alone) `fd` and 8 bytes, **little-endian** |
//! | `string` | its length in bytes as a `u64`, then UTF-8, without an end mark |
//! | list of T | its length in elements as a `u64`, then the elements |
//! | optional T | 00 for none, or 01 and the T |
//! | enum | the number of the variant as a `u32`, then the variant's fields |
//! | struct | its fields in order, nothing around or between them |
//!
//! A writer uses the shortest form of a number. A reader may accept a longer one.
//!
//! Types with a name of their own, and what they are made of:
//!
//! | type | made of | rule |
//! | --- | --- | --- |
//! | `name` ([`TokenName`]) | `string` | 1 to 255 ASCII letters, digits and `. _ - @ : +`, beginning with a letter or digit |
//! | `secret` ([`Secret`]) | `string` | to be wiped from memory after use, never to be logged |
//! | `time` ([`Timestamp`]) | `u64` | milliseconds since 1970-01-01T00:00:00Z |
//! | `fingerprint` ([`Fingerprint`]) | 8 × `u8` | no length before it; tells one token from another without telling the token |
//! | `terms` ([`Terms`]) | `deadline_ms` `u32`, `min_ttl_ms` `u32` | see [Get](#request-0-get) |
//! | `variant` ([`Variant`]) | `scope` list of `string`, `resource` list of `string`, `audience` list of `string` | see [Get](#request-0-get) |
//! | `state` ([`State`]) | enum | numbers [below](#numbers) |
//! | `class` ([`ErrorClass`]) | enum | numbers below |
//! | `outcome` ([`RejectOutcome`]) | enum | numbers below |
//! | `code` ([`ErrorCode`]) | enum | numbers below |
//! | `attribute` ([`Attribute`]) | `name` `string`, `value` `string` | the name is a word in lower case, with hyphens, such as `clock-skew` |
//! | `info` ([`TokenInfo`]) | `age_ms` `u64`, `expires_in_ms` `u64`, `expires_at` `time`, `state` `state`, `last_error` optional `class`, `next_attempt` optional `time`, `fingerprint` `fingerprint` | a token's condition at the moment of the reply |
//! | `subject` ([`Subject`]) | enum | numbers below; 1 has a `string` and 2 a `u32` behind it |
//! | `facts` ([`SubjectFacts`]) | `uid` `u32`, `gid` optional `u32`, `groups` list of `u32`, `pid` optional `u32`, `unit` optional `string`, `user_unit` optional `string`, `invocation_id` optional `string`, `exe` optional `string` | what cannot be proved is absent |
//! | `rules` ([`ExplainedList`]) | `of` `string`, `rules` list of (`rule` `string`, `matches` `bool`, `conditions` list of (`condition` `string`, `holds` `bool`, `fact` `string`)) | see [Explained](#reply-9-explained) |
//! | `held` ([`HeldToken`]) | `age_ms` `u64`, `expires_in_ms` `u64`, `expires_at` `time`, `fingerprint` `fingerprint` | the same of a token that is not handed out |
//!
//! Ages and lifetimes were measured by the daemon on a clock that runs on while the machine is suspended and
//! that nobody sets. A caller that keeps a token should count `expires_in_ms` down on such a clock
//! (`CLOCK_BOOTTIME`) rather than compare `expires_at` with a wall clock.
//!
//! # Requests
//!
//! ## Request 0: Get
//!
//! `name` `name`, `terms` `terms`, `variant` `variant`. Answered by [Token](#reply-0-token).
//!
//! Where a valid token with at least `min_ttl_ms` left is held, it is the answer, at once, whatever the
//! provider's condition is. Otherwise the answer waits for the provider until `deadline_ms` after the request
//! arrived, and is `DeadlineExceeded` then. With a `deadline_ms` of 0 nothing is waited for. A caller does not
//! rely on the daemon alone for its deadline: it sets one of its own on the socket, a little later.
//!
//! `variant` asks for the token in a form that the configuration lets callers choose: with these scopes alone, for
//! these resources, for these audiences. An empty list leaves what is configured. A term that may not be asked
//! for is an `InvalidRequest`.
//!
//! ```text
//! request-0-get.bin
//! 00 00 00 23                          length of the body: 35
//! 01                                   version
//! 00 00 00 01                          request id 1
//! 00                                   request 0, Get
//! 03 70 73 62                          name "psb"
//! fb 88 13                             deadline_ms 5000
//! fb 30 75                             min_ttl_ms 30000
//! 01                                   scope: 1 element
//! 04 61 69 73 70                       "aisp"
//! 01                                   resource: 1 element
//! 0a 63 6f 6e 6e 65 63 74 61 70 69     "connectapi"
//! 00                                   audience: 0 elements
//! ```
//!
//! ## Request 1: Headers
//!
//! `name` `name`, `terms` `terms`, `supplied` list of (`name` `string`, `value` `string`), `omitted` list of
//! `string`, `variant` `variant`. Answered by [Headers](#reply-1-headers).
//!
//! `supplied` holds the headers that the token's configuration leaves to the caller (`caller_headers`), and
//! `omitted` the names of those that this call goes without. One of `caller_headers` that is in neither, and
//! one supplied that is not among them, is an `InvalidRequest`.
//!
//! ```text
//! request-1-headers.bin
//! 00 00 00 33                          length of the body: 51
//! 01                                   version
//! 00 00 00 01                          request id 1
//! 01                                   request 1, Headers
//! 06 77 65 61 6c 74 68                 name "wealth"
//! fb 88 13                             deadline_ms 5000
//! fb 30 75                             min_ttl_ms 30000
//! 01                                   supplied: 1 element
//! 0c 52 65 71 75 65 73 74 6f 72 2d 49  name "Requestor-ID"
//! 44
//! 05 6e 70 2d 34 32                    value "np-42"
//! 01                                   omitted: 1 element
//! 07 58 2d 54 72 61 63 65              name "X-Trace"
//! 00                                   scope: 0 elements
//! 00                                   resource: 0 elements
//! 00                                   audience: 0 elements
//! ```
//!
//! ## Request 2: List
//!
//! `after` optional `name`. Answered by [List](#reply-2-list).
//!
//! ```text
//! request-2-list.bin
//! 00 00 00 07                          length of the body: 7
//! 01                                   version
//! 00 00 00 01                          request id 1
//! 02                                   request 2, List
//! 00                                   after: none
//! ```
//!
//! ## Request 3: Status
//!
//! `after` optional `name`. Answered by [Status](#reply-3-status).
//!
//! ```text
//! request-3-status.bin
//! 00 00 00 0b                          length of the body: 11
//! 01                                   version
//! 00 00 00 01                          request id 1
//! 03                                   request 3, Status
//! 01                                   after: there is one
//! 03 70 73 62                          after "psb"
//! ```
//!
//! ## Request 4: Refresh
//!
//! `name` `name`, `deadline_ms` `u32`. Answered by [Refreshed](#reply-4-refreshed). For operators.
//!
//! ```text
//! request-4-refresh.bin
//! 00 00 00 0f                          length of the body: 15
//! 01                                   version
//! 00 00 00 01                          request id 1
//! 04                                   request 4, Refresh
//! 03 70 73 62                          name "psb"
//! fc a0 86 01 00                       deadline_ms 100000
//! ```
//!
//! ## Request 5: Reject
//!
//! `name` `name`, `fingerprint` `fingerprint`, `deadline_ms` `u32`, `variant` `variant`. Answered by
//! [Rejected](#reply-5-rejected). The variant is the one that the token was asked for with.
//!
//! To be sent when an API refused a token that should be valid (401). The fingerprint is that of the refused
//! token, as it came in its `info`. If another token is current by now, the provider is not asked again.
//!
//! ```text
//! request-5-reject.bin
//! 00 00 00 16                          length of the body: 22
//! 01                                   version
//! 00 00 00 01                          request id 1
//! 05                                   request 5, Reject
//! 03 70 73 62                          name "psb"
//! 01 23 45 67 89 ab cd ef              fingerprint 0123456789abcdef
//! fa                                   deadline_ms 250
//! 00                                   scope: 0 elements
//! 00                                   resource: 0 elements
//! 00                                   audience: 0 elements
//! ```
//!
//! ## Request 6: Watch
//!
//! `names` list of `name`. Answered by any number of [Event](#reply-6-event).
//!
//! One event for each name follows at once, and one for every later change of its condition, all under the
//! id of this request, until the connection is closed. Events of one name come in order. Each tells the
//! present condition: where changes follow each other faster than the caller reads, those in between are left
//! out, never the last. A name given twice counts once, and there may be 256. If any of the names is refused, or
//! there are none or too many, the answer is one `Error` and nothing is watched. An `Error` under this id later
//! on ends the watch, as after a reload that takes a name away.
//!
//! ```text
//! request-6-watch.bin
//! 00 00 00 14                          length of the body: 20
//! 01                                   version
//! 00 00 00 01                          request id 1
//! 06                                   request 6, Watch
//! 02                                   names: 2 elements
//! 03 70 73 62                          name "psb"
//! 08 62 6e 70 2d 61 69 73 70           name "bnp-aisp"
//! ```
//!
//! ## Request 7: Version
//!
//! No fields. Answered by [Version](#reply-7-version).
//!
//! ```text
//! request-7-version.bin
//! 00 00 00 06                          length of the body: 6
//! 01                                   version
//! 00 00 00 01                          request id 1
//! 07                                   request 7, Version
//! ```
//!
//! ## Request 8: Explain
//!
//! `name` `name`, `variant` `variant`, `subject` `subject`. Answered by [Explained](#reply-9-explained).
//!
//! Why somebody may have the token in this form or may not. Anybody may ask about itself, and is refused as by
//! Get where it may not have the token. Operators may ask about all subjects of [the table](#numbers), and are
//! answered whatever the decision is. A user or process that does not exist is an `InvalidRequest`.
//!
//! ```text
//! request-8-explain-user.bin
//! 00 00 00 16                          length of the body: 22
//! 01                                   version
//! 00 00 00 01                          request id 1
//! 08                                   request 8, Explain
//! 03 70 73 62                          name "psb"
//! 00                                   scope: 0 elements
//! 00                                   resource: 0 elements
//! 00                                   audience: 0 elements
//! 01                                   subject 1, User
//! 07 62 69 6c 6c 69 6e 67              user "billing"
//! ```
//!
//! # Replies
//!
//! Each request is answered by its own reply or by [Error](#reply-8-error).
//!
//! ## Reply 0: Token
//!
//! `info` `info`, `token` `secret`.
//!
//! ```text
//! reply-0-token.bin
//! 00 00 00 40                          length of the body: 64
//! 01                                   version
//! 00 00 00 01                          request id 1
//! 00                                   reply 0, Token
//! fa                                   age_ms 250
//! fc 86 ed 36 00                       expires_in_ms 3599750
//! fd 80 d6 ce b6 9a 01 00 00           expires_at 2025-11-24T17:00:00Z
//! 00                                   state 0, Fresh
//! 00                                   last_error: none
//! 01                                   next_attempt: there is one
//! fd 00 da c3 b6 9a 01 00 00           next_attempt 2025-11-24T16:48:00Z
//! 01 23 45 67 89 ab cd ef              fingerprint 0123456789abcdef
//! 16 32 59 6f 74 6e 46 5a 46 45 6a 72  token "2YotnFZFEjr1zCsicMWpAA"
//! 31 7a 43 73 69 63 4d 57 70 41 41
//! ```
//!
//! ## Reply 1: Headers
//!
//! `info` `info`, `headers` list of (`name` `string`, `value` `secret`). The list begins with `Authorization`
//! and is to be sent as it is.
//!
//! ```text
//! reply-1-headers.bin
//! 00 00 00 6f                          length of the body: 111
//! 01                                   version
//! 00 00 00 01                          request id 1
//! 01                                   reply 1, Headers
//! fa                                   age_ms 250
//! fc 86 ed 36 00                       expires_in_ms 3599750
//! fd 80 d6 ce b6 9a 01 00 00           expires_at 2025-11-24T17:00:00Z
//! 02                                   state 2, Degraded
//! 01                                   last_error: there is one
//! 04                                   class 4, Server
//! 01                                   next_attempt: there is one
//! fd 00 da c3 b6 9a 01 00 00           next_attempt 2025-11-24T16:48:00Z
//! 01 23 45 67 89 ab cd ef              fingerprint 0123456789abcdef
//! 02                                   headers: 2 elements
//! 0d 41 75 74 68 6f 72 69 7a 61 74 69  name "Authorization"
//! 6f 6e
//! 1d 42 65 61 72 65 72 20 32 59 6f 74  value "Bearer 2YotnFZFEjr1zCsicMWpAA"
//! 6e 46 5a 46 45 6a 72 31 7a 43 73 69
//! 63 4d 57 70 41 41
//! 06 41 63 63 65 70 74                 name "Accept"
//! 10 61 70 70 6c 69 63 61 74 69 6f 6e  value "application/json"
//! 2f 6a 73 6f 6e
//! ```
//!
//! ## Reply 2: List
//!
//! `tokens` list of (`name` `name`, `state` `state`), `more` `bool`.
//!
//! The tokens that the caller may have, sorted by the bytes of their names, from the first one behind the
//! request's `after`. Where `more` is true, a further request with the last name of this page brings the next.
//!
//! ```text
//! reply-2-list.bin
//! 00 00 00 44                          length of the body: 68
//! 01                                   version
//! 00 00 00 01                          request id 1
//! 02                                   reply 2, List
//! 06                                   tokens: 6 elements
//! 05 66 72 65 73 68                    name "fresh"
//! 00                                   state 0, Fresh
//! 0a 72 65 66 72 65 73 68 69 6e 67     name "refreshing"
//! 01                                   state 1, Refreshing
//! 08 64 65 67 72 61 64 65 64           name "degraded"
//! 02                                   state 2, Degraded
//! 07 70 65 6e 64 69 6e 67              name "pending"
//! 03                                   state 3, Pending
//! 0b 75 6e 61 76 61 69 6c 61 62 6c 65  name "unavailable"
//! 04                                   state 4, Unavailable
//! 07 72 65 66 75 73 65 64              name "refused"
//! 05                                   state 5, Refused
//! 01                                   more true
//! ```
//!
//! ## Reply 3: Status
//!
//! `daemon` (`version` `string`, `pid` `u32`, `started_at` `time`, `connections` `u32`, `reload_failed_at`
//! optional `time`, `attributes` list of `attribute`), `tokens` list of (`name` `name`, `provider` `string`, `state` `state`, `held` optional
//! `held`, `last_error` optional (`class` `class`, `message` `string`, `at` `time`), `failures` `u32`,
//! `next_attempt` optional `time`, `requests` `u64`, `hand_outs` `u64`, `deviations` list of (`kind` `string`,
//! `count` `u64`), `attributes` list of `attribute`), `more` `bool`. Pages are those of [List](#reply-2-list).
//!
//! To anybody but an operator `pid` and `connections` are 0 and `reload_failed_at` is absent.
//!
//! The attributes are further facts for people, in order of their names, each name once. A program may show
//! them and must not rely on them: a daemon tells those that it knows and finds worth telling, and a value is
//! worded for a reader. So they grow without a new version.
//!
//! ```text
//! reply-3-status.bin
//! 00 00 00 cf                          length of the body: 207
//! 01                                   version
//! 00 00 00 01                          request id 1
//! 03                                   reply 3, Status
//! 05 30 2e 31 2e 30                    version "0.1.0"
//! fb 67 12                             pid 4711
//! fd 00 e8 97 b6 9a 01 00 00           started_at 2025-11-24T16:00:00Z
//! 02                                   connections 2
//! 00                                   reload_failed_at: none
//! 01                                   attributes: 1 element
//! 09 63 6c 6f 63 6b 2d 73 65 74        name "clock-set"
//! 07 32 20 74 69 6d 65 73              value "2 times"
//! 01                                   tokens: 1 element
//! 08 62 6e 70 2d 61 69 73 70           name "bnp-aisp"
//! 03 62 6e 70                          provider "bnp"
//! 02                                   state 2, Degraded
//! 01                                   held: there is one
//! fa                                   age_ms 250
//! fc 86 ed 36 00                       expires_in_ms 3599750
//! fd 80 d6 ce b6 9a 01 00 00           expires_at 2025-11-24T17:00:00Z
//! 01 23 45 67 89 ab cd ef              fingerprint 0123456789abcdef
//! 01                                   last_error: there is one
//! 04                                   class 4, Server
//! 19 74 68 65 20 70 72 6f 76 69 64 65  message "the provider answered 503"
//! 72 20 61 6e 73 77 65 72 65 64 20 35
//! 30 33
//! fd 00 da c3 b6 9a 01 00 00           at 2025-11-24T16:48:00Z
//! 01                                   failures 1
//! 01                                   next_attempt: there is one
//! fd 10 01 c4 b6 9a 01 00 00           next_attempt 2025-11-24T16:48:10Z
//! 02                                   requests 2
//! fc 70 11 01 00                       hand_outs 70000
//! 01                                   deviations: 1 element
//! 11 65 78 70 69 72 65 73 5f 69 6e 2d  kind "expires_in-string"
//! 73 74 72 69 6e 67
//! 01                                   count 1
//! 02                                   attributes: 2 elements
//! 0d 63 6c 69 65 6e 74 2d 73 65 63 72  name "client-secret"
//! 65 74
//! 11 65 78 70 69 72 65 73 20 69 6e 20  value "expires in 6 days"
//! 36 20 64 61 79 73
//! 0a 63 6c 6f 63 6b 2d 73 6b 65 77     name "clock-skew"
//! 03 2d 33 73                          value "-3s"
//! 00                                   more false
//! ```
//!
//! ## Reply 4: Refreshed
//!
//! `info` `info`, `changed` `bool`.
//!
//! ```text
//! reply-4-refreshed.bin
//! 00 00 00 2a                          length of the body: 42
//! 01                                   version
//! 00 00 00 01                          request id 1
//! 04                                   reply 4, Refreshed
//! fa                                   age_ms 250
//! fc 86 ed 36 00                       expires_in_ms 3599750
//! fd 80 d6 ce b6 9a 01 00 00           expires_at 2025-11-24T17:00:00Z
//! 00                                   state 0, Fresh
//! 00                                   last_error: none
//! 01                                   next_attempt: there is one
//! fd 00 da c3 b6 9a 01 00 00           next_attempt 2025-11-24T16:48:00Z
//! 01 23 45 67 89 ab cd ef              fingerprint 0123456789abcdef
//! 01                                   changed true
//! ```
//!
//! ## Reply 5: Rejected
//!
//! `outcome` `outcome`, `info` `info`. A caller that still holds another token than the one in `info` gets
//! the current one and tries again; one that does not has learnt that a new token does not help.
//!
//! ```text
//! reply-5-rejected-replaced.bin
//! 00 00 00 2a                          length of the body: 42
//! 01                                   version
//! 00 00 00 01                          request id 1
//! 05                                   reply 5, Rejected
//! 00                                   outcome 0, Replaced
//! fa                                   age_ms 250
//! fc 86 ed 36 00                       expires_in_ms 3599750
//! fd 80 d6 ce b6 9a 01 00 00           expires_at 2025-11-24T17:00:00Z
//! 00                                   state 0, Fresh
//! 00                                   last_error: none
//! 01                                   next_attempt: there is one
//! fd 00 da c3 b6 9a 01 00 00           next_attempt 2025-11-24T16:48:00Z
//! 01 23 45 67 89 ab cd ef              fingerprint 0123456789abcdef
//! ```
//!
//! ## Reply 6: Event
//!
//! `name` `name`, `state` `state`, `held` optional `held`, `last_error` optional `class`, `next_attempt`
//! optional `time`. It brings no token: the caller gets it when `held` has another fingerprint.
//!
//! ```text
//! reply-6-event.bin
//! 00 00 00 2e                          length of the body: 46
//! 01                                   version
//! 00 00 00 01                          request id 1
//! 06                                   reply 6, Event
//! 03 70 73 62                          name "psb"
//! 00                                   state 0, Fresh
//! 01                                   held: there is one
//! fa                                   age_ms 250
//! fc 86 ed 36 00                       expires_in_ms 3599750
//! fd 80 d6 ce b6 9a 01 00 00           expires_at 2025-11-24T17:00:00Z
//! 01 23 45 67 89 ab cd ef              fingerprint 0123456789abcdef
//! 00                                   last_error: none
//! 01                                   next_attempt: there is one
//! fd 00 da c3 b6 9a 01 00 00           next_attempt 2025-11-24T16:48:00Z
//! ```
//!
//! ## Reply 7: Version
//!
//! `daemon` `string`, `oldest` `u8`, `newest` `u8`: the daemon's release, and the protocol versions it speaks.
//!
//! ```text
//! reply-7-version.bin
//! 00 00 00 0e                          length of the body: 14
//! 01                                   version
//! 00 00 00 01                          request id 1
//! 07                                   reply 7, Version
//! 05 30 2e 31 2e 30                    daemon "0.1.0"
//! 01                                   oldest 1
//! 01                                   newest 1
//! ```
//!
//! ## Reply 8: Error
//!
//! `code` `code`, `message` `string`, `class` optional `class`, `next_attempt` optional `time`, `best_ttl_ms`
//! optional `u64`. The message is for a person; a program goes by `code` alone.
//!
//! ```text
//! reply-8-error.bin
//! 00 00 00 30                          length of the body: 48
//! 01                                   version
//! 00 00 00 01                          request id 1
//! 08                                   reply 8, Error
//! 08                                   code 8, MinTtlUnreachable
//! 18 6e 6f 20 74 6f 6b 65 6e 20 6c 61  message "no token lasts that long"
//! 73 74 73 20 74 68 61 74 20 6c 6f 6e
//! 67
//! 01                                   class: there is one
//! 03                                   class 3, Throttled
//! 01                                   next_attempt: there is one
//! fd 30 5d 98 b6 9a 01 00 00           next_attempt 2025-11-24T16:00:30Z
//! 01                                   best_ttl_ms: there is one
//! fb 60 ea                             best_ttl_ms 60000
//! ```
//!
//! ## Reply 9: Explained
//!
//! `allowed` `bool`, `reason` `string`, `facts` `facts`, `operator` optional `string`, `lists` list of `rules`,
//! `omitted` `u32`.
//!
//! The reason names what lets the subject have the token, in the words of the audit trail: `root`, `the daemon's
//! own user`, or a rule; or says why nothing does. `operator` is what makes it an operator. `lists` are the rules
//! of the token (`of` is `token`) and of those of its scopes, resources and audiences that have rules of their own
//! (`of` is such as `scope transfer`): in each of them one must match. Only operators get them. Of very many
//! groups and rules, `omitted` are left out.
//!
//! ```text
//! reply-9-explained.bin
//! 00 00 00 6a                          length of the body: 106
//! 01                                   version
//! 00 00 00 01                          request id 1
//! 09                                   reply 9, Explained
//! 01                                   allowed: true
//! 03 61 6e 79                          reason "any"
//! fb e9 03                             uid 1001
//! 01                                   gid: there is one
//! fb e9 03                             gid 1001
//! 01                                   groups: 1 element
//! 1b                                   group 27
//! 01                                   pid: there is one
//! fb 67 12                             pid 4711
//! 01                                   unit: there is one
//! 0e 70 61 79 40 65 75 2e 73 65 72 76  unit "pay@eu.service"
//! 69 63 65
//! 00                                   user_unit: none
//! 00                                   invocation_id: none
//! 01                                   exe: there is one
//! 0c 2f 75 73 72 2f 62 69 6e 2f 70 61  exe "/usr/bin/pay"
//! 79
//! 00                                   operator: none
//! 01                                   lists: 1 element
//! 05 74 6f 6b 65 6e                    of "token"
//! 02                                   rules: 2 elements
//! 06 75 73 65 72 3a 30                 rule "user:0"
//! 00                                   matches: false
//! 01                                   conditions: 1 element
//! 06 75 73 65 72 3a 30                 condition "user:0"
//! 00                                   holds: false
//! 10 74 68 65 20 75 73 65 72 20 69 73  fact "the user is 1001"
//! 20 31 30 30 31
//! 03 61 6e 79                          rule "any"
//! 01                                   matches: true
//! 00                                   conditions: 0 elements
//! 00                                   omitted 0
//! ```
//!
//! # Numbers
//!
//! [`Subject`]: whom a decision is about.
//!
//! | number | subject | meaning |
//! | --- | --- | --- |
//! | 0 | `Caller` | who asks, as its connection shows it |
//! | 1 | `User` | the user of this name or number, with its groups and nothing else |
//! | 2 | `Process` | the process of this id, as it is now |
//!
//! [`State`]: a valid token is held in the first three.
//!
//! | number | state | meaning |
//! | --- | --- | --- |
//! | 0 | `Fresh` | valid, and no new one is due |
//! | 1 | `Refreshing` | valid, and a new one is being asked for |
//! | 2 | `Degraded` | valid, and the last attempt to get a new one failed |
//! | 3 | `Pending` | none, and no attempt has failed: the first has not ended, or the token expired unreplaced |
//! | 4 | `Unavailable` | none; the last attempt failed in a way that passes |
//! | 5 | `Refused` | none; an operator is needed |
//!
//! [`ErrorClass`]: why the provider gave no token.
//!
//! | number | class | meaning |
//! | --- | --- | --- |
//! | 0 | `Unreachable` | no connection |
//! | 1 | `Timeout` | no answer in time |
//! | 2 | `Tls` | its certificate or its TLS is not good |
//! | 3 | `Throttled` | it asks for fewer requests |
//! | 4 | `Server` | it failed |
//! | 5 | `Malformed` | its answer is not a token response |
//! | 6 | `Refused` | it refused the request |
//! | 7 | `Secret` | a secret that the request needs could not be read on this host |
//! | 8 | `Internal` | a fault of the daemon's own |
//!
//! [`RejectOutcome`]: what was done about a refused token.
//!
//! | number | outcome | meaning |
//! | --- | --- | --- |
//! | 0 | `Replaced` | it was current, and there is a new one |
//! | 1 | `Superseded` | it was not current any more |
//! | 2 | `Unchanged` | the provider gave the same one again |
//! | 3 | `TooSoon` | the provider was not asked: it was asked too lately |
//!
//! [`ErrorCode`]: what the caller can do.
//!
//! | number | code | meaning |
//! | --- | --- | --- |
//! | 0 | `NotAllowed` | the caller may not have it, or there is no such token |
//! | 1 | `UnknownToken` | there is no such token; only operators are told |
//! | 2 | `Unavailable` | no token now, for a reason that passes: try again, after `next_attempt` where it is given |
//! | 3 | `Refused` | no token until an operator has seen to it |
//! | 4 | `DeadlineExceeded` | the deadline passed |
//! | 5 | `InvalidRequest` | the request makes no sense |
//! | 6 | `UnsupportedVersion` | the frame's protocol version is not spoken here |
//! | 7 | `Overloaded` | the caller, or its user, has too much open or in flight, or asks too often: try again with less, and not before `next_attempt` where there is one |
//! | 8 | `MinTtlUnreachable` | no token lives as long as `min_ttl_ms`; `best_ttl_ms` is the most there is |
//! | 9 | `ShuttingDown` | the daemon is stopping: connect again |
//!
//! # Order
//!
//! Requests of one connection are worked on side by side, and answers come in any order. A caller that needs
//! one thing done before the next waits for the answer in between. The daemon bounds what one connection may
//! have in flight, by reading no further until some are answered or by `Overloaded`; so a caller that writes many
//! requests reads the answers meanwhile. A watch is in flight until it ends: one for many names, rather than one
//! for each.
//!
//! # Faults
//!
//! What the daemon does about a frame that is not a request:
//!
//! | it receives | it answers `Error` with | the connection |
//! | --- | --- | --- |
//! | a body of fewer than 5 bytes | `InvalidRequest`, id 0 | goes on |
//! | a version that it does not speak | `UnsupportedVersion`, the frame's id | goes on |
//! | an unknown variant, a field that is cut or invalid, bytes behind the message | `InvalidRequest`, the frame's id | goes on |
//! | a length above 16,384 | `InvalidRequest`, id 0 | is closed: the next frame cannot be found |
//! | a connection too many | `Overloaded`, id 0 | is closed |
//! | no first frame for some seconds, or part of a frame and not the rest of it | nothing | is closed |
//! | (answers that the caller does not read for some seconds) | nothing | is closed |
//!
//! An `Error` with id 0 is about the connection and not about one request. A caller ignores replies with an
//! id that it does not wait for (it may have given up on the request), takes a body that it cannot decode as
//! the failure of that one request, and closes the connection on a length above 262,144. When a connection
//! ends with requests in flight, they have failed; each of them can be sent again on a new connection.
//!
//! # Growth
//!
//! - A message never changes: no field is added, removed, reordered or given another type. A changed message
//!   is a new variant. Variants are added behind the last; numbers are never used again.
//! - Without a new version: a new request, with new replies that answer it alone. A daemon that does not know
//!   it answers `InvalidRequest`.
//! - With a new version: new values of `state`, `class`, `outcome` and `code`, and whatever else an older
//!   caller could be sent and not understand. A request is answered in the version of its frame, and with
//!   what that version knows.
//! - In every version a body begins with version and id, and request 7 and replies 7 and 8 are as they are
//!   here with at least the codes of this page. So both sides can always read why they do not understand each
//!   other: the answer to a version that is not spoken is an `Error` in the nearest version that is.

mod blocking;
mod codec;
mod explain;
mod message;
mod name;
mod secret;
#[cfg(feature = "tokio")]
mod tokio;

#[cfg(feature = "tokio")]
pub use crate::tokio::Codec;
pub use blocking::{read_frame, write_frame};
pub use codec::{
    BadFrame, Fault, Frame, HEADER_BYTES, LENGTH_BYTES, Message, REPLY_MAX, REQUEST_MAX, TooLarge, VERSION,
    decode, encode,
};
pub use explain::{
    ExplainRequest, ExplainedCondition, ExplainedList, ExplainedReply, ExplainedRule, Subject, SubjectFacts,
};
pub use message::{
    Attribute, CallerHeader, DaemonStatus, Deviation, ErrorClass, ErrorCode, ErrorReply, EventReply,
    Fingerprint, FingerprintError, GetRequest, Header, HeadersReply, HeadersRequest, HeldToken, LastError,
    ListEntry, ListReply, PageRequest, RefreshRequest, RefreshedReply, RejectOutcome, RejectRequest,
    RejectedReply, Reply, Request, State, StatusReply, Terms, Timestamp, TokenInfo, TokenReply, TokenStatus,
    Variant, VersionReply, WatchRequest,
};
pub use name::{TOKEN_NAME_MAX, TokenName, TokenNameError};
pub use secret::Secret;
