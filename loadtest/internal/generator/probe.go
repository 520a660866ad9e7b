//go:build linux

package generator

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tocsin-push/tocsin/wire"
)

// Probe opens one connection and closes it, so that what is wrong with the
// server or the URL can be said in a sentence before thousands try.
func (t *Target) Probe(ctx context.Context, insecure bool) error {
	d := net.Dialer{Timeout: 5 * time.Second}
	conn, err := d.DialContext(ctx, "tcp", t.addr.String())
	if err != nil {
		if errors.Is(err, unix.ECONNREFUSED) {
			return fmt.Errorf("nothing listens on %s: is the server running?", t.addr)
		}
		return fmt.Errorf("%s cannot be reached: %w", t.url.Redacted(), err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second)) // a fresh TCP connection takes one
	if p := tlsOf([]*Target{t}, insecure); p != nil {
		secured := tls.Client(conn, p.config(0))
		if err := secured.HandshakeContext(ctx); err != nil {
			return fmt.Errorf("%s: TLS handshake: %w%s", t.url.Redacted(), err, tlsHint(err))
		}
		conn = secured
	}
	var key [24]byte
	if _, err = conn.Write(parseRequest(t.request).append(nil, 0, seed(0).appendKey(key[:0], 0))); err != nil {
		return fmt.Errorf("%s ended the connection: %w", t.url.Redacted(), err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET):
		return fmt.Errorf("%s closed the connection without an answer: does it want TLS, as wss://?", t.url.Redacted())
	case err != nil:
		return fmt.Errorf("%s did not answer in HTTP: %w", t.url.Redacted(), err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusSwitchingProtocols {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 200))
		line, _, _ := bytes.Cut(bytes.TrimSpace(text), []byte("\n"))
		return fmt.Errorf("%s refused the upgrade: %s %s", t.url.Redacted(), resp.Status, line)
	}
	_, _ = conn.Write(wire.AppendMasked(nil, 8, true, [4]byte{1, 2, 3, 4}, []byte{3, 0xe8})) // a polite 1000; the close follows anyway
	return nil
}

// tlsHint says what to do about a TLS handshake that failed.
func tlsHint(err error) string {
	_, alien := errors.AsType[tls.RecordHeaderError](err)
	_, untrusted := errors.AsType[*tls.CertificateVerificationError](err)
	switch {
	case untrusted:
		return "; --insecure takes any certificate, SSL_CERT_FILE adds an authority"
	case alien, errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET):
		return "; does it speak TLS? Without, it is ws://"
	}
	return ""
}
