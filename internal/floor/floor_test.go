//go:build linux

package floor

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestMain makes this test's program the floor's process when it is started
// so: Serve holds its thread and wants no garbage collector beside it.
func TestMain(m *testing.M) {
	if os.Getenv("FLOOR_SERVER") == "" {
		os.Exit(m.Run())
	}
	ln, at, err := Listen(netip.MustParseAddrPort("127.0.0.1:0"))
	if err == nil {
		fmt.Println(at)
		err = Serve(ln, 0, 5)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func startServer(t *testing.T) (addr string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "FLOOR_SERVER=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close() // its end
		if err := cmd.Wait(); err != nil {
			t.Errorf("the floor ended with %v", err)
		}
	})
	addr, err = bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(addr)
}

// client is one connection, upgraded with a request that comes in pieces.
type client struct {
	net.Conn
	r *bufio.Reader
}

func dial(t *testing.T, addr string) client {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second)) // a fresh connection takes one
	c := client{conn, bufio.NewReader(conn)}
	for part := range strings.SplitSeq("GET / HTTP/1.1\r\nHost: x\r\nSec-WebSo|cket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r|\n", "|") {
		c.send(t, part)
	}
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := resp.Header.Get("Sec-WebSocket-Accept"); resp.StatusCode != http.StatusSwitchingProtocols || got != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" { // RFC 6455 section 1.3
		t.Fatalf("status %d, accept %q", resp.StatusCode, got)
	}
	return c
}

func (c client) send(t *testing.T, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatal(err)
	}
}

func (c client) want(t *testing.T, s string) {
	t.Helper()
	b := make([]byte, len(s))
	if _, err := io.ReadFull(c.r, b); err != nil || string(b) != s {
		t.Fatalf("read %q, %v; want %q", b, err, s)
	}
}

func (c client) wantEnd(t *testing.T) {
	t.Helper()
	if b, err := io.ReadAll(c.r); len(b) > 0 || err != nil && !strings.Contains(err.Error(), "reset") {
		t.Fatalf("read %q, %v; want the end", b, err)
	}
}

func TestServe(t *testing.T) {
	addr := startServer(t)
	a, b := dial(t, addr), dial(t, addr)
	const frame = "\x81\x82\x01\x02\x03\x04ab"
	a.send(t, frame+frame)
	a.want(t, "\x81\x05.....\x81\x05.....")

	for _, size := range []int{2, 128, 70000} {
		body := strings.Repeat("x", size)
		resp, err := http.Post("http://"+addr+"/", "text/plain", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		count, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(count) != "2" {
			t.Fatalf("sent to %q, %v; want 2", count, err)
		}
		head := map[int]string{2: "\x81\x02", 128: "\x81\x7e\x00\x80", 70000: "\x81\x7f\x00\x00\x00\x00\x00\x01\x11\x70"}[size]
		a.want(t, head+body)
		b.want(t, head+body)
	}

	a.send(t, "\x88\x80\x01\x02\x03\x04")
	a.wantEnd(t)
	b.send(t, "\x81\xfe") // longer than it takes
	b.wantEnd(t)
	dial(t, addr)
}
