/* Calls an API with a token of tokend, and once more with another token if the API refuses it.
 *
 *   cc get.c $(pkg-config --cflags --libs tokend) && ./a.out psb https://api.example/accounts
 *
 * curl(1) makes the call here, and reads the header from its standard input: no command line has the token. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tokend.h>

/* The status of the API, or 0. */
static int call_api(const char *url, const tokend_token *token) {
    char command[1024], status[8] = "";
    if (strchr(url, '\'') != NULL) return 0;
    snprintf(command, sizeof command, "curl --silent --output /dev/stderr --write-out '%%{http_code}' --header @- '%s' >status", url);
    FILE *curl = popen(command, "w");
    if (curl == NULL) return 0;
    fprintf(curl, "Authorization: %s\n", tokend_token_authorization(token));
    if (pclose(curl) != 0) return 0;
    FILE *file = fopen("status", "r");
    if (file == NULL) return 0;
    if (fgets(status, sizeof status, file) == NULL) status[0] = 0;
    fclose(file);
    remove("status");
    return atoi(status);
}

/* The token, or the end of the program. */
static tokend_token *get(const tokend_client *client, const char *name) {
    tokend_error *error = NULL;
    tokend_token *token = tokend_get(client, name, 0, &error);
    if (token != NULL) return token;
    fprintf(stderr, "%s: %s\n", name, tokend_error_message(error));
    exit(tokend_error_code(error) == TOKEND_CODE_NOT_ALLOWED ? 4 : 1);
}

int main(int argc, char **argv) {
    if (argc != 3) { fprintf(stderr, "usage: %s TOKEN URL\n", argv[0]); return 2; }
    tokend_client *client = tokend_client_new(NULL, 0);
    tokend_token *token = get(client, argv[1]);
    int status = call_api(argv[2], token);
    if (status == 401) {
        tokend_error *error = NULL;
        tokend_outcome outcome = tokend_reject(client, argv[1], tokend_token_fingerprint(token), &error);
        tokend_error_free(error);
        if (outcome == TOKEND_OUTCOME_REPLACED || outcome == TOKEND_OUTCOME_SUPERSEDED) {
            tokend_token_free(token);
            token = get(client, argv[1]);
            status = call_api(argv[2], token);
        }
    }
    printf("%d, with the token %s\n", status, tokend_token_fingerprint(token));
    tokend_token_free(token);
    tokend_client_free(client);
    return status == 200 ? 0 : 1;
}
