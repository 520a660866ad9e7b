//go:build linux

package api

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/tocsin-push/tocsin/loadtest/internal/generator"
	"github.com/tocsin-push/tocsin/loadtest/internal/usage"
)

// Address are the flags that say where Tocsin is asked.
type Address struct {
	API    string `name:"api" default:"http://127.0.0.1:8081" help:"Tocsin's publish API."`
	APIKey string `name:"api-key" env:"TOCSIN_API_KEY" placeholder:"KEY" help:"Its key."`
}

// at returns the URL of a path of the API.
func (a *Address) at(path string) string { return strings.TrimSuffix(a.API, "/") + path }

// Endpoint returns the URL that path is posted to. Only loopback addresses are
// allowed unless remote is set; the error is a [usage.Error].
func (a *Address) Endpoint(path string, remote bool) (*url.URL, error) {
	return postTo(a.at(path), remote)
}

// postTo reads a URL to publish to. Only loopback addresses are allowed unless
// remote is set.
func postTo(where string, remote bool) (*url.URL, error) {
	u, err := url.Parse(where)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, usage.Errorf("%s is not an HTTP URL to publish to", where)
	}
	if !isLoopback(u.Hostname()) && !remote {
		return nil, usage.Errorf("%s is not on this machine: loadtest only loads loopback addresses unless --allow-remote is given", where)
	}
	return u, nil
}

func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback() || host == "localhost"
}

// ask sends a request with the key, and returns the body of an answer that is
// not an error.
func (a *Address) ask(client *http.Client, req *http.Request) ([]byte, error) {
	if a.APIKey != "" {
		req.Header.Set("X-API-Key", a.APIKey)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && resp.StatusCode >= 300 {
		err = fmt.Errorf("%s %s: %s: %s", req.Method, req.URL, resp.Status, bytes.TrimSpace(text[:min(len(text), 300)]))
	}
	return text, err
}

// CheckSize returns a [usage.Error] for a payload that a worker would not know
// again, or that no server takes.
func CheckSize(payload int) error {
	if payload < generator.MinPayload || payload > 1<<20 {
		return usage.Errorf("--size must be %d to %d bytes", generator.MinPayload, 1<<20)
	}
	return nil
}
