package engine

import (
	"encoding/binary"
	"fmt"
	"net/http"
	"strconv"
)

// What a client is told that is not taken: over Config.MaxConnections, and
// during a shutdown.
const (
	TextFull     = "the server is full, try again later"
	TextDraining = "the server is shutting down"
)

// appendRefusal appends a whole HTTP response that ends the connection. An
// answer to HEAD has no text.
func (e *Engine) appendRefusal(dst []byte, status int, text string) []byte {
	if text != "" {
		text += "\n"
	}
	dst = fmt.Appendf(dst, "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nDate: ", status, http.StatusText(status), len(text))
	dst = append(e.kernel.Date().UTC().AppendFormat(dst, http.TimeFormat), "\r\nConnection: "...)
	if status == http.StatusUpgradeRequired { // who sends Upgrade names it in Connection, RFC 9110 section 7.8
		dst = append(dst, "Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"...)
	} else {
		dst = append(dst, "close\r\n"...)
	}
	switch status {
	case http.StatusMethodNotAllowed:
		dst = append(dst, "Allow: GET\r\n"...)
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		dst = append(strconv.AppendUint(append(dst, "Retry-After: "...), e.retryAfter(), 10), "\r\n"...)
	}
	return append(append(dst, "\r\n"...), text...)
}

// random returns a number by chance.
func (e *Engine) random() uint64 {
	var b [8]byte
	e.kernel.Rand(b[:])
	return binary.LittleEndian.Uint64(b[:])
}

// refusal is an HTTP answer other than 101.
type refusal struct {
	status int
	reject Reject
	text   string
}

func badRequest(text string) *refusal { return &refusal{400, RejectHead, text} }

func shuttingDown() *refusal {
	return &refusal{503, RejectShutdown, TextDraining}
}

// retryAfter returns after how many seconds who is refused may come again.
func (e *Engine) retryAfter() uint64 { return 1 + e.random()%30 }
