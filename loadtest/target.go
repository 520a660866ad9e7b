//go:build linux

package main

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
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tocsin-push/tocsin/loadtest/internal/usage"
	"github.com/tocsin-push/tocsin/wire"
)

// target is a WebSocket URL as the generator sees it.
type target struct {
	url     *url.URL
	addr    netip.AddrPort
	request string // with {n} and {key} in it
}

// secure says that the server speaks TLS.
func (t *target) secure() bool { return t.url.Scheme == "wss" || t.url.Scheme == "https" }

// parseTarget reads a ws:// or wss:// URL, in which {n} stands for the number of the
// connection, and looks its host up. Only loopback addresses are allowed
// unless remote is set.
func parseTarget(ctx context.Context, raw string, headers []string, remote bool) (*target, error) {
	u, err := url.Parse(raw)
	switch {
	case err != nil:
		return nil, usage.Errorf("%s is not a URL: %w", raw, errors.Unwrap(err))
	case !slices.Contains([]string{"ws", "wss", "http", "https"}, u.Scheme) || u.Host == "":
		return nil, usage.Errorf("%s is not a WebSocket URL, as ws://127.0.0.1:8080/ws is", raw)
	}
	t := &target{url: u}
	port := u.Port()
	switch {
	case port != "":
	case t.secure():
		port = "443"
	default:
		port = "80"
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", u.Hostname())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", raw, err)
	}
	ip := ips[0].Unmap()
	for _, other := range ips {
		if other.Unmap().Is4() { // what most servers listen on
			ip = other.Unmap()
			break
		}
	}
	t.addr, err = netip.ParseAddrPort(net.JoinHostPort(ip.String(), port))
	if err != nil {
		return nil, usage.Errorf("%s: port %s is not one", raw, port)
	}
	if !ip.IsLoopback() && !remote {
		return nil, usage.Errorf("%s is not on this machine: loadtest only loads loopback addresses unless --allow-remote is given", raw)
	}
	path := u.EscapedPath()
	if path == "" {
		path = "/"
	}
	if u.RawQuery != "" {
		path += "?" + u.RawQuery
	}
	path = strings.NewReplacer("%7Bn%7D", "{n}", "%7bn%7d", "{n}", " ", "%20").Replace(path)
	var b strings.Builder
	fmt.Fprintf(&b, "GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n", path, u.Host)
	for _, h := range headers {
		name, value, ok := strings.Cut(h, ":")
		if !ok || strings.ContainsAny(h, "\r\n") {
			return nil, usage.Errorf("--header %q is not a name, a colon and a value", h)
		}
		fmt.Fprintf(&b, "%s: %s\r\n", strings.TrimSpace(name), strings.TrimSpace(value))
	}
	b.WriteString("\r\n")
	t.request = b.String()
	return t, nil
}

// withTopic has the connections of a URL subscribe to a topic, unless the URL
// names topics itself. It is not parsed for that, because of the {n} in it.
func withTopic(raw, topic string) string {
	_, query, has := strings.Cut(raw, "?")
	sep := "?"
	if has {
		sep = "&"
	}
	if strings.HasPrefix(query, "topics=") || strings.Contains(query, "&topics=") {
		return raw
	}
	return raw + sep + "topics=" + url.QueryEscape(topic)
}

// probe opens one connection and closes it, so that what is wrong with the
// server or the URL can be said in a sentence before thousands try.
func (t *target) probe(ctx context.Context, insecure bool) error {
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
	if p := tlsOf([]*target{t}, insecure); p != nil {
		secured := tls.Client(conn, p.config(0))
		if err := secured.HandshakeContext(ctx); err != nil {
			return fmt.Errorf("%s: TLS handshake: %w%s", t.url.Redacted(), err, tlsHint(err))
		}
		conn = secured
	}
	e := engine{}
	var key [24]byte
	if _, err = conn.Write(parseRequest(t.request).append(nil, 0, e.appendKey(key[:0], 0))); err != nil {
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

// sourcesFor returns the addresses to connect from: of each the kernel gives
// out about 28,000 ports towards one server, and gets slow near the last.
func sourcesFor(conns int, targets []*target, given []string) ([]string, error) {
	for _, s := range given {
		if _, err := netip.ParseAddr(s); err != nil {
			return nil, usage.Errorf("--source %s is not an IP address", s)
		}
	}
	if len(given) > 0 {
		return given, nil
	}
	for _, t := range targets {
		if !t.addr.Addr().Is4() || !t.addr.Addr().IsLoopback() {
			return nil, nil
		}
	}
	const ports = 10000
	sources := []string{}
	for n := range (conns/len(targets) + ports - 1) / ports {
		sources = append(sources, fmt.Sprintf("127.0.%d.%d", 1+n/250, 1+n%250))
	}
	return sources, nil
}

// withHost returns a URL with another host and port.
func withHost(raw, host string) string {
	at := strings.Index(raw, "://")
	if at < 0 {
		return raw
	}
	at += len("://")
	rest := strings.IndexAny(raw[at:], "/?")
	if rest < 0 {
		return raw[:at] + host
	}
	return raw[:at] + host + raw[at+rest:]
}

func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback() || host == "localhost"
}
