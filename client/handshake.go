package client

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/tocsin-push/tocsin/wire/tocsin"
)

const (
	maxHead    = 16 << 10 // bytes of the head of the server's answer
	maxRefusal = 512      // bytes of a refusal's body that are told
)

// HandshakeError is an HTTP answer other than 101 to the upgrade.
type HandshakeError struct {
	Status     int
	Reason     string        // the beginning of the answer's body
	RetryAfter time.Duration // the Retry-After header; 0 when there was none
}

// Error implements error.
func (e *HandshakeError) Error() string {
	return strings.TrimSuffix(fmt.Sprintf("upgrade refused: %d %s: %s", e.Status, http.StatusText(e.Status), e.Reason), ": ")
}

// open connects to the server, with TLS for wss.
func (c *Client) open(ctx context.Context, u *url.URL) (net.Conn, error) {
	dial := c.opt.NetDial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"ws": "80", "wss": "443"}[u.Scheme]
	}
	conn, err := dial(ctx, "tcp", net.JoinHostPort(u.Hostname(), port))
	if err != nil || u.Scheme == "ws" {
		return conn, err
	}
	config := c.opt.TLS.Clone()
	if config == nil {
		config = new(tls.Config)
	}
	config.ServerName = cmp.Or(config.ServerName, u.Hostname())
	secure := tls.Client(conn, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return secure, nil
}

// upgrade makes conn a WebSocket and returns a reader of what the server sends
// after its 101. Another answer is a [*HandshakeError].
func upgrade(conn net.Conn, u *url.URL, header http.Header) (*bufio.Reader, error) {
	var nonce [16]byte
	_, _ = rand.Read(nonce[:]) // never fails
	key := base64.StdEncoding.EncodeToString(nonce[:])
	req := &http.Request{Method: http.MethodGet, URL: u, Header: header.Clone()}
	if req.Header == nil {
		req.Header = make(http.Header)
	}
	req.Header.Set("Upgrade", "websocket")
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Sec-WebSocket-Version", "13")
	req.Header.Set("Sec-WebSocket-Key", key)
	req.Header.Set("Sec-WebSocket-Protocol", tocsin.Subprotocol)
	req.Header.Del("Sec-WebSocket-Extensions") // none is spoken here
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	return readAnswer(conn, key)
}

// readAnswer reads the answer to an upgrade with that Sec-WebSocket-Key. Its
// head, with those of interim answers before it, is at most maxHead bytes long.
func readAnswer(r io.Reader, key string) (*bufio.Reader, error) {
	limited := &io.LimitedReader{R: r, N: maxHead}
	br := bufio.NewReader(limited)
	resp, err := http.ReadResponse(br, nil)
	for err == nil && resp.StatusCode/100 == 1 && resp.StatusCode != http.StatusSwitchingProtocols {
		resp, err = http.ReadResponse(br, nil) // that was an interim answer, RFC 9110 section 15.2
	}
	if err != nil && limited.N == 0 && br.Buffered() == 0 { // whatever it made of the beginning
		err = fmt.Errorf("the head of the server's answer is over %d bytes", maxHead)
	}
	if err != nil {
		return nil, err
	}
	limited.N = math.MaxInt64
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return nil, readRefusal(resp)
	}
	return br, checkAnswer(resp, key)
}

// readRefusal reads an answer that is not 101. It leaves the body open: closing
// it would read it to its end.
func readRefusal(resp *http.Response) *HandshakeError {
	e := &HandshakeError{Status: resp.StatusCode}
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s > 0 {
		e.RetryAfter = time.Duration(s) * time.Second
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxRefusal)) // what there is of it
	e.Reason = strings.TrimSpace(string(body))
	return e
}

// checkAnswer checks a 101 as RFC 6455 section 4.1 demands of a client.
func checkAnswer(resp *http.Response, key string) error {
	// RFC 9110 section 5.3: several lines are one list.
	value := func(name string) string { return strings.Join(resp.Header.Values(name), ", ") }
	bad := func(name string) error {
		return fmt.Errorf("the server's 101 has the wrong %s: %.100q", name, value(name))
	}
	accept := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	switch {
	case resp.ProtoMajor != 1 || resp.ProtoMinor < 1:
		return fmt.Errorf("the server's 101 is of %.100q, want HTTP/1.1", resp.Proto)
	case !equalFold(value("Upgrade"), "websocket"):
		return bad("Upgrade")
	case !hasToken(value("Connection"), "upgrade"):
		return bad("Connection")
	case value("Sec-WebSocket-Accept") != base64.StdEncoding.EncodeToString(accept[:]):
		return bad("Sec-WebSocket-Accept")
	case strings.Trim(value("Sec-WebSocket-Extensions"), ", \t") != "": // none was offered
		return bad("Sec-WebSocket-Extensions")
	case len(resp.Header.Values("Sec-WebSocket-Protocol")) > 0 && value("Sec-WebSocket-Protocol") != tocsin.Subprotocol:
		return bad("Sec-WebSocket-Protocol")
	}
	return nil
}

// hasToken reports whether a list of tokens has this one, in any case.
func hasToken(list, token string) bool {
	for s := range strings.SplitSeq(list, ",") {
		if equalFold(strings.Trim(s, " \t"), token) {
			return true
		}
	}
	return false
}

// equalFold compares s with a word in ASCII, in any case. The length keeps out
// letters beyond ASCII that fold into it.
func equalFold(s, ascii string) bool { return len(s) == len(ascii) && strings.EqualFold(s, ascii) }
