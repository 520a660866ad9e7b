//go:build linux

package main

import (
	"crypto/tls"
	"maps"
	"net"
	"net/http/httptest"
	"strings"
	"testing"
)

// secureListener listens with a certificate that nobody trusts.
func secureListener(t *testing.T, version uint16) net.Listener {
	t.Helper()
	lender := httptest.NewTLSServer(nil)
	lender.Close()
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: lender.TLS.Certificates, MinVersion: version, MaxVersion: version,
	})
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// TestTLS has everything go through TLS: answers, also such as are sent while
// reading, messages of more than one record, and connections that come back.
func TestTLS(t *testing.T) {
	for name, version := range map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13} {
		t.Run(name, func(t *testing.T) {
			f := newFakeOn(t, secureListener(t, version))
			f.message = (*fakeConn).say
			url := "wss" + strings.TrimPrefix(f.url, "ws")
			o := loadtest(t, "broadcast", "--url", url, "--insecure", "--trigger", f.trigger, "-n", "30", "--procs", "2", "--rounds", "5", "--size", "40000")
			o.want(t, map[string]float64{"connections": 30, "delivered": 150, "missing": 0, "doubled": 0, "misordered": 0})
			if o.status != 0 {
				t.Errorf("broadcast: status %d: %s", o.status, o.err)
			}
			o = loadtest(t, "echo", "--url", url, "--insecure", "-n", "20", "--active", "8", "--message-rate", "1000", "--duration", "200ms")
			o.want(t, map[string]float64{"sent": 200, "replies": 200})
			o = loadtest(t, "echo", "--url", url, "--insecure", "-n", "20", "--active", "8", "--message-rate", "0", "--duration", "100ms")
			if sent, replies := o.value(t, "sent"), o.value(t, "replies"); o.status != 0 || sent <= 8 || sent != replies {
				t.Errorf("saturated: status %d, %v sent, %v replies: %s", o.status, sent, replies, o.err)
			}
			o = loadtest(t, "herd", "--url", url, "--insecure", "-n", "40", "--live", "4", "--percent", "50")
			o.want(t, map[string]float64{"dropped": 20, "back": 20})
		})
	}
}

// TestTLSFails has every second handshake meet a server without TLS and the
// others one that never answers, once the first look at it has gone well.
func TestTLSFails(t *testing.T) {
	f := newFakeOn(t, &fickle{Listener: secureListener(t, tls.VersionTLS13)})
	o := loadtest(t, "connect", "--url", "wss"+strings.TrimPrefix(f.url, "ws"), "--insecure", "-n", "10", "--timeout", "500ms")
	want := map[string]uint64{"timeout": 5, "tls: first record does not look like a TLS handshake": 5}
	if o.status != 1 || len(o.Results) == 0 || !maps.Equal(o.Results[0].Failures, want) {
		t.Errorf("status %d, %s; want failures %v", o.status, o.out, want)
	}
}

// fickle speaks TLS with its first client alone.
type fickle struct {
	net.Listener
	met  int
	held []net.Conn
}

func (l *fickle) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			for _, held := range l.held {
				held.Close()
			}
			return nil, err
		}
		l.met++
		if l.met == 1 {
			return c, nil
		}
		raw := c.(*tls.Conn).NetConn()
		if l.met%2 == 0 {
			_, _ = raw.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")) // the client says what came of it
		}
		l.held = append(l.held, raw)
	}
}
