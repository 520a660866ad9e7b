//go:build linux

package generator

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/tocsin-push/tocsin/loadtest/internal/usage"
)

// Target is a WebSocket URL as the generator sees it.
type Target struct {
	url     *url.URL
	addr    netip.AddrPort
	request string // with {n} and {key} in it
}

// secure says that the server speaks TLS.
func (t *Target) secure() bool { return t.url.Scheme == "wss" || t.url.Scheme == "https" }

// Local says that the server is on this machine.
func (t *Target) Local() bool { return t.addr.Addr().IsLoopback() }

// ParseTarget reads a ws:// or wss:// URL, in which {n} stands for the number
// of the connection, looks its host up, and has each handshake carry headers,
// as NAME:VALUE. Only loopback addresses are allowed unless remote is set. An
// error is a [usage.Error], but for a host that is not found.
func ParseTarget(ctx context.Context, raw string, headers []string, remote bool) (*Target, error) {
	u, err := url.Parse(raw)
	switch {
	case err != nil:
		return nil, usage.Errorf("%s is not a URL: %w", raw, errors.Unwrap(err))
	case !slices.Contains([]string{"ws", "wss", "http", "https"}, u.Scheme) || u.Host == "":
		return nil, usage.Errorf("%s is not a WebSocket URL, as ws://127.0.0.1:8080/ws is", raw)
	}
	t := &Target{url: u}
	port := u.Port()
	switch {
	case port != "":
	case t.secure():
		port = "443"
	default:
		port = "80"
	}
	ip, err := lookUp(ctx, u.Hostname())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", raw, err)
	}
	t.addr, err = netip.ParseAddrPort(net.JoinHostPort(ip.String(), port))
	if err != nil {
		return nil, usage.Errorf("%s: port %s is not one", raw, port)
	}
	if !ip.IsLoopback() && !remote {
		return nil, usage.Errorf("%s is not on this machine: loadtest only loads loopback addresses unless --allow-remote is given", raw)
	}
	t.request, err = upgradeRequest(u, headers)
	return t, err
}

// lookUp returns an address of a host, one of IPv4 if it has one, which is what
// most servers listen on.
func lookUp(ctx context.Context, host string) (netip.Addr, error) {
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return netip.Addr{}, err
	}
	for _, ip := range ips {
		if ip.Unmap().Is4() {
			return ip.Unmap(), nil
		}
	}
	return ips[0].Unmap(), nil
}

// upgradeRequest returns the handshake for a URL, with {n} and {key} in it.
func upgradeRequest(u *url.URL, headers []string) (string, error) {
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
			return "", usage.Errorf("--header %q is not a name, a colon and a value", h)
		}
		fmt.Fprintf(&b, "%s: %s\r\n", strings.TrimSpace(name), strings.TrimSpace(value))
	}
	b.WriteString("\r\n")
	return b.String(), nil
}

// Sources returns the addresses to connect from, none if that is the kernel's
// choice: those that are given, or as many of 127.0.0.0/8 as conns connections
// to targets there need. Of each the kernel gives out about 28,000 ports
// towards one server, and gets slow near the last. An error is a [usage.Error].
func Sources(conns int, targets []*Target, given []string) ([]string, error) {
	for _, s := range given {
		if _, err := netip.ParseAddr(s); err != nil {
			return nil, usage.Errorf("--source %s is not an IP address", s)
		}
	}
	if len(given) > 0 {
		return given, nil
	}
	for _, t := range targets {
		if !t.addr.Addr().Is4() || !t.Local() {
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

// tlsOf returns how to speak to targets, nil for plain TCP: they are of one
// URL, which is wss:// for all or for none.
func tlsOf(targets []*Target, insecure bool) *tlsPlan {
	if !targets[0].secure() {
		return nil
	}
	p := &tlsPlan{Insecure: insecure}
	for _, t := range targets {
		p.Names = append(p.Names, t.url.Hostname())
	}
	return p
}
