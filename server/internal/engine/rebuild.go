package engine

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
)

// RebuildHead writes r's head again, for the same strict look as every other.
// The mux has chosen the path already, so it counts as Config.Path.
func RebuildHead(r *http.Request, path string) []byte {
	b := append([]byte(r.Method), ' ')
	origin, _ := cutOrigin([]byte(r.RequestURI))
	b = append(b, origin...)
	b = append(b, (&url.URL{Path: path}).EscapedPath()...)
	if r.URL.RawQuery != "" {
		b = append(append(b, '?'), r.URL.RawQuery...)
	}
	b = fmt.Appendf(b, " %s\r\nHost: %s\r\n", r.Proto, r.Host)
	if r.ContentLength != 0 {
		b = fmt.Appendf(b, "Content-Length: %d\r\n", r.ContentLength)
	}
	if len(r.TransferEncoding) > 0 {
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	}
	for name, values := range r.Header {
		switch {
		case name == "Content-Length":
			continue
		case name == "Cache-Control" && r.Header.Get("Pragma") == "no-cache" && slices.Equal(values, []string{"no-cache"}):
			continue // net/http adds it to Pragma: the client may have sent 64 fields without it
		}
		for _, v := range values {
			b = fmt.Appendf(b, "%s: %s\r\n", name, v)
		}
	}
	return append(b, "\r\n"...)
}
