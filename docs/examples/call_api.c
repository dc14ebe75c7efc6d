/* Calls an HTTP API with a token of tokend: call_api TOKEN URL. libcurl 7.83 or newer. */
#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static size_t ignore(char *bytes, size_t size, size_t count, void *context) {
    (void)bytes;
    (void)context;
    return size * count;
}

/* The line `Authorization: Bearer ...` for an API call, to be freed with curl_slist_free_all; NULL without a token. */
static struct curl_slist *authorization(const char *name) {
    struct curl_slist *line = NULL;
    struct curl_header *header;
    char text[16384];
    CURL *tokend = curl_easy_init();
    snprintf(text, sizeof text, "http://tokend/v1/auth/%s", name);
    curl_easy_setopt(tokend, CURLOPT_UNIX_SOCKET_PATH, "/run/tokend/http.sock");
    curl_easy_setopt(tokend, CURLOPT_URL, text);
    curl_easy_setopt(tokend, CURLOPT_WRITEFUNCTION, ignore);
    CURLcode result = curl_easy_perform(tokend);
    long status = 0;
    curl_easy_getinfo(tokend, CURLINFO_RESPONSE_CODE, &status);
    if (status != 204) {
        fprintf(stderr, "tokend: %s, status %ld\n", curl_easy_strerror(result), status);
    } else if (curl_easy_header(tokend, "Authorization", 0, CURLH_HEADER, -1, &header) == CURLHE_OK) {
        int length = snprintf(text, sizeof text, "Authorization: %s", header->value);
        if (length > 0 && (size_t)length < sizeof text) line = curl_slist_append(NULL, text);
    }
    explicit_bzero(text, sizeof text);
    curl_easy_cleanup(tokend);
    return line;
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: %s TOKEN URL\n", argv[0]);
        return 2;
    }
    curl_global_init(CURL_GLOBAL_DEFAULT);
    struct curl_slist *headers = authorization(argv[1]);
    if (headers == NULL) return 1;
    CURL *api = curl_easy_init();
    curl_easy_setopt(api, CURLOPT_URL, argv[2]);
    curl_easy_setopt(api, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(api, CURLOPT_FAILONERROR, 1L);
    CURLcode result = curl_easy_perform(api); /* the answer goes to standard output */
    if (result != CURLE_OK) fprintf(stderr, "%s: %s\n", argv[2], curl_easy_strerror(result));
    curl_easy_cleanup(api);
    curl_slist_free_all(headers);
    curl_global_cleanup();
    return result == CURLE_OK ? 0 : 1;
}
