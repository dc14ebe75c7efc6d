// Calls an API with a token of tokend, and once more with another token if the API refuses it.
//
//	go run . psb https://api.example/accounts
package main

/*
#cgo pkg-config: tokend
#include <stdlib.h>
#include <tokend.h>
*/
import "C"

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"unsafe"
)

// failure turns an error of the library into one of Go, and frees it.
func failure(failed *C.tokend_error) error {
	defer C.tokend_error_free(failed)
	return errors.New(C.GoString(C.tokend_error_message(failed)))
}

// get returns the value of the Authorization header, and the fingerprint of the token.
func get(client *C.tokend_client, name *C.char) (string, string, error) {
	var failed *C.tokend_error
	token := C.tokend_get(client, name, 0, &failed)
	if token == nil {
		return "", "", failure(failed)
	}
	defer C.tokend_token_free(token)
	return C.GoString(C.tokend_token_authorization(token)), C.GoString(C.tokend_token_fingerprint(token)), nil
}

func call(url, authorization string) (int, error) {
	request, err := http.NewRequest("GET", url, nil)
	if err != nil {
		return 0, err
	}
	request.Header.Set("Authorization", authorization)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	return response.StatusCode, nil
}

func run(name, url string) error {
	client := C.tokend_client_new(nil, 0)
	defer C.tokend_client_free(client)
	token := C.CString(name)
	defer C.free(unsafe.Pointer(token))
	authorization, fingerprint, err := get(client, token)
	if err != nil {
		return err
	}
	status, err := call(url, authorization)
	if err != nil {
		return err
	}
	if status == http.StatusUnauthorized {
		refused := C.CString(fingerprint)
		defer C.free(unsafe.Pointer(refused))
		var failed *C.tokend_error
		switch C.tokend_reject(client, token, refused, &failed) {
		case C.TOKEND_OUTCOME_FAILED:
			return failure(failed)
		case C.TOKEND_OUTCOME_REPLACED, C.TOKEND_OUTCOME_SUPERSEDED:
			if authorization, fingerprint, err = get(client, token); err != nil {
				return err
			}
			if status, err = call(url, authorization); err != nil {
				return err
			}
		}
	}
	if status != http.StatusOK {
		return fmt.Errorf("%d, with the token %s", status, fingerprint)
	}
	fmt.Printf("%d, with the token %s\n", status, fingerprint)
	return nil
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: main TOKEN URL")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
