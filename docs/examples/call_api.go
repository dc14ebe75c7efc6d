// Calls an HTTP API with a token of tokend: go run call_api.go TOKEN URL
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
)

// The client for tokend. The host of its URLs has no meaning.
var tokend = http.Client{Transport: &http.Transport{
	DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", "/run/tokend/http.sock")
	},
}}

// The client for the API. It follows no redirect, so that the headers go to no other host.
var client = http.Client{CheckRedirect: func(*http.Request, []*http.Request) error {
	return http.ErrUseLastResponse
}}

type answer struct {
	Headers     map[string]string
	Fingerprint string
	Outcome     string
	Detail      string
}

// ask sends one request to tokend.
func ask(method, path string) (got answer, err error) {
	request, err := http.NewRequest(method, "http://tokend"+path, nil)
	if err != nil {
		return got, err
	}
	response, err := tokend.Do(request)
	if err != nil {
		return got, err
	}
	defer response.Body.Close()
	err = json.NewDecoder(response.Body).Decode(&got)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("tokend: %s", got.Detail)
	}
	return got, err
}

// call makes one call of the API, and returns the fingerprint of the token too.
func call(token, api string) (*http.Response, string, error) {
	got, err := ask(http.MethodGet, token+"/headers")
	if err != nil {
		return nil, "", err
	}
	request, err := http.NewRequest(http.MethodGet, api, nil)
	if err != nil {
		return nil, "", err
	}
	for name, value := range got.Headers {
		request.Header.Set(name, value)
	}
	response, err := client.Do(request)
	return response, got.Fingerprint, err
}

func run(name, api string) error {
	token := "/v1/tokens/" + url.PathEscape(name)
	response, fingerprint, err := call(token, api)
	if err != nil {
		return err
	}
	// The API refuses a token that should be valid. One more attempt, if there is another token.
	if response.StatusCode == http.StatusUnauthorized {
		got, err := ask(http.MethodPost, token+"/reject?fingerprint="+fingerprint)
		if err != nil {
			return err
		}
		if got.Outcome == "replaced" || got.Outcome == "superseded" {
			response.Body.Close()
			if response, _, err = call(token, api); err != nil {
				return err
			}
		}
	}
	defer response.Body.Close()
	fmt.Print(response.StatusCode, " ")
	_, err = io.Copy(os.Stdout, response.Body)
	return err
}

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: call_api TOKEN URL")
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		log.Fatal(err)
	}
}
