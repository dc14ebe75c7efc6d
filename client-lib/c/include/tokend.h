/* The client library of tokend, a daemon that hands out OAuth 2.0 access tokens: see README.md. Made by cbindgen. */

#ifndef TOKEND_H
#define TOKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 The result of a rejection: the daemon was told that an API refused a token.
 */
typedef enum tokend_outcome {
  /*
   The call failed.
   */
  TOKEND_OUTCOME_FAILED,
  /*
   There is a new token. Get it, and repeat the API call.
   */
  TOKEND_OUTCOME_REPLACED,
  /*
   The daemon held another token already. Get it, and repeat the API call.
   */
  TOKEND_OUTCOME_SUPERSEDED,
  /*
   The provider returned the same token. Another one would not help.
   */
  TOKEND_OUTCOME_UNCHANGED,
  /*
   The daemon did not ask the provider, because this token or the last request is only seconds old.
   */
  TOKEND_OUTCOME_TOO_SOON,
} tokend_outcome;

/*
 The kinds of failures, by what the caller can do.
 */
typedef enum tokend_code {
  /*
   No failure.
   */
  TOKEND_CODE_OK,
  /*
   The daemon cannot be reached.
   */
  TOKEND_CODE_NOT_REACHABLE,
  /*
   The caller may not do this, or there is no such token.
   */
  TOKEND_CODE_NOT_ALLOWED,
  /*
   There is no such token. Only operators get this.
   */
  TOKEND_CODE_UNKNOWN_TOKEN,
  /*
   No token now, for a reason that may pass.
   */
  TOKEND_CODE_UNAVAILABLE,
  /*
   No token until an operator acts.
   */
  TOKEND_CODE_NEEDS_OPERATOR,
  /*
   The deadline passed.
   */
  TOKEND_CODE_DEADLINE_EXCEEDED,
  /*
   The request is not valid: an argument is NULL or not UTF-8, or no token can have this name.
   */
  TOKEND_CODE_INVALID_REQUEST,
  /*
   The daemon and this library do not understand each other. Upgrade one of them.
   */
  TOKEND_CODE_PROTOCOL,
  /*
   The caller or its user has too many connections or requests.
   */
  TOKEND_CODE_OVERLOADED,
  /*
   No token lasts as long as asked.
   */
  TOKEND_CODE_MIN_TTL_UNREACHABLE,
  /*
   The daemon is stopping.
   */
  TOKEND_CODE_SHUTTING_DOWN,
  /*
   A fault in this library.
   */
  TOKEND_CODE_INTERNAL,
} tokend_code;

/*
 A client. Any number of threads may use it at the same time.
 */
typedef struct tokend_client tokend_client;

/*
 Why a call failed.
 */
typedef struct tokend_error tokend_error;

/*
 The headers of an API call. They are erased from memory when they are freed.
 */
typedef struct tokend_headers tokend_headers;

/*
 An access token. It is erased from memory when it is freed.
 */
typedef struct tokend_token tokend_token;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/*
 Makes a client. It connects at the first call.

 `socket`: the path of the daemon's socket. With NULL, the one that the variable `TOKEND_SOCKET` names, or else
 /run/tokend/tokend.sock. `deadline_ms`: how long a call may take in all; 0 stands for 10 seconds.

 # Safety
 `socket` is NULL or a string.
 */
struct tokend_client *tokend_client_new(const char *socket,
                                        uint32_t deadline_ms);

/*
 Frees a client. NULL is allowed.

 # Safety
 The client is of `tokend_client_new`, and is not used any more.
 */
void tokend_client_free(struct tokend_client *client);

/*
 Gets a valid access token. Returns NULL upon a failure, and then sets `error`, unless that is NULL.

 `min_ttl_ms`: the shortest remaining lifetime that the caller can use; 0 accepts any valid token.

 # Safety
 `client` is a client, `name` a string, `error` NULL or the place of a pointer.
 */
struct tokend_token *tokend_get(const struct tokend_client *client,
                                const char *name,
                                uint32_t min_ttl_ms,
                                struct tokend_error **error);

/*
 The access token.

 # Safety
 `token` is a token, or NULL, of which all facts are NULL or 0.
 */
const char *tokend_token_value(const struct tokend_token *token);

/*
 The value of the `Authorization` header with the token, as in `Bearer 2YotnFZFEjr1zCsicMWpAA`.

 # Safety
 `token` is a token, or NULL, of which all facts are NULL or 0.
 */
const char *tokend_token_authorization(const struct tokend_token *token);

/*
 Identifies the token in `tokend_reject` and in the journal, without revealing it.

 # Safety
 `token` is a token, or NULL, of which all facts are NULL or 0.
 */
const char *tokend_token_fingerprint(const struct tokend_token *token);

/*
 When the token expires, in seconds since 1970.

 # Safety
 `token` is a token, or NULL, of which all facts are NULL or 0.
 */
int64_t tokend_token_expires_at(const struct tokend_token *token);

/*
 Erases and frees a token. NULL is allowed.

 # Safety
 The token is of `tokend_get`, and is not used any more.
 */
void tokend_token_free(struct tokend_token *token);

/*
 Gets all headers of an API call, `Authorization` first. Returns NULL upon a failure, and then sets `error`, unless that is NULL.
 Headers that the configuration leaves to the caller are left out.

 # Safety
 As `tokend_get`.
 */
struct tokend_headers *tokend_headers_get(const struct tokend_client *client,
                                          const char *name,
                                          uint32_t min_ttl_ms,
                                          struct tokend_error **error);

/*
 How many headers there are.

 # Safety
 `headers` is of `tokend_headers_get`, or NULL, which has no headers.
 */
size_t tokend_headers_count(const struct tokend_headers *headers);

/*
 The name of a header, counted from 0. NULL after the last one.

 # Safety
 As `tokend_headers_count`.
 */
const char *tokend_headers_name(const struct tokend_headers *headers, size_t index);

/*
 The value of a header, counted from 0. NULL after the last one.

 # Safety
 As `tokend_headers_count`.
 */
const char *tokend_headers_value(const struct tokend_headers *headers, size_t index);

/*
 Identifies the token in the headers: see `tokend_token_fingerprint`.

 # Safety
 As `tokend_headers_count`.
 */
const char *tokend_headers_fingerprint(const struct tokend_headers *headers);

/*
 Erases and frees headers. NULL is allowed.

 # Safety
 The headers are of `tokend_headers_get`, and are not used any more.
 */
void tokend_headers_free(struct tokend_headers *headers);

/*
 Reports that an API refused the token with this fingerprint (status 401). Upon a failure, returns `TOKEND_OUTCOME_FAILED` and sets
 `error`, unless that is NULL.

 # Safety
 As `tokend_get`; `fingerprint` is a string.
 */
enum tokend_outcome tokend_reject(const struct tokend_client *client,
                                  const char *name,
                                  const char *fingerprint,
                                  struct tokend_error **error);

/*
 The kind of the failure. `TOKEND_CODE_OK` for NULL.

 # Safety
 `error` is NULL or an error.
 */
enum tokend_code tokend_error_code(const struct tokend_error *error);

/*
 The reason for a person. It contains no secret.

 # Safety
 `error` is an error, or NULL, of which the message is empty.
 */
const char *tokend_error_message(const struct tokend_error *error);

/*
 When the same call may succeed, in seconds since 1970. 0 if the daemon does not know it.

 # Safety
 `error` is an error, or NULL, of which the message is empty.
 */
int64_t tokend_error_retry_at(const struct tokend_error *error);

/*
 Whether the same call may succeed later without anybody changing anything.

 # Safety
 `error` is an error, or NULL, of which the message is empty.
 */
bool tokend_error_is_retryable(const struct tokend_error *error);

/*
 Frees an error. NULL is allowed.

 # Safety
 The error was set by this library, and is not used any more.
 */
void tokend_error_free(struct tokend_error *error);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* TOKEND_H */
