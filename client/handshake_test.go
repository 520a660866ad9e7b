package client

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/wire"
	"github.com/tocsin-push/tocsin/wire/tocsin"
)

// The example of RFC 6455 section 1.3.
const (
	sampleKey    = "dGhlIHNhbXBsZSBub25jZQ=="
	sampleAccept = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
	switching    = "HTTP/1.1 101 Switching Protocols\r\n"
	sampleHead   = switching + "Upgrade: websocket\r\nConnection: Upgrade\r\n" + sampleAccept
)

// readings gives readAnswer the same bytes in different portions.
var readings = map[string]func(io.Reader) io.Reader{
	"whole":        func(r io.Reader) io.Reader { return r },
	"byte by byte": iotest.OneByteReader,
}

func TestValidAnswers(t *testing.T) {
	for name, head := range map[string]string{
		"plain":                   sampleHead,
		"token among others":      switching + "Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n" + sampleAccept,
		"empty elements and tabs": switching + "Upgrade:\twebsocket\r\nConnection: ,\tupgrade\t,keep-alive\r\n" + sampleAccept,
		"token in a second line":  switching + "Connection: keep-alive\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" + sampleAccept,
		"any case":                switching + "UPGRADE: WebSocket\r\nconnection: uPGRADE\r\n" + strings.ToLower(sampleAccept[:20]) + sampleAccept[20:],
		"no reason phrase":        "HTTP/1.1 101\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" + sampleAccept,
		"the subprotocol":         sampleHead + "Sec-WebSocket-Protocol: " + tocsin.Subprotocol + "\r\n",
		"no extension":            sampleHead + "Sec-WebSocket-Extensions: \r\n",
		"other fields":            sampleHead + "Server: x\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\n",
		"after interim answers":   "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + sampleHead,
	} {
		for how, read := range readings {
			br, err := readAnswer(read(strings.NewReader(head+"\r\nwhat follows")), sampleKey)
			if err != nil {
				t.Errorf("%s, %s: %v", name, how, err)
				continue
			}
			if rest, _ := io.ReadAll(br); string(rest) != "what follows" {
				t.Errorf("%s, %s: %q follows", name, how, rest)
			}
		}
	}
}

func TestWrongAnswers(t *testing.T) {
	for _, tt := range []struct{ name, head, want string }{
		{"HTTP/1.0", "HTTP/1.0" + sampleHead[8:], "HTTP/1.0"},
		{"HTTP/2", "HTTP/2.0" + sampleHead[8:], "HTTP/2.0"},
		{"no Upgrade", switching + "Connection: Upgrade\r\n" + sampleAccept, "wrong Upgrade"},
		{"other Upgrade", switching + "Upgrade: websocket, h2c\r\nConnection: Upgrade\r\n" + sampleAccept, "wrong Upgrade"},
		{"Upgrade beyond ASCII", switching + "Upgrade: web\u017focket\r\nConnection: Upgrade\r\n" + sampleAccept, "wrong Upgrade"},
		{"no Connection", switching + "Upgrade: websocket\r\n" + sampleAccept, "wrong Connection"},
		{"other Connection", switching + "Upgrade: websocket\r\nConnection: keep-alive, Upgraded\r\n" + sampleAccept, "wrong Connection"},
		{"no accept", strings.TrimSuffix(sampleHead, sampleAccept), "wrong Sec-WebSocket-Accept"},
		{"two accepts", sampleHead + sampleAccept, "wrong Sec-WebSocket-Accept"},
		{"other accept", strings.Replace(sampleHead, "xOo=", "xoo=", 1), "wrong Sec-WebSocket-Accept"},
		{"extension", sampleHead + "Sec-WebSocket-Extensions: permessage-deflate\r\n", `wrong Sec-WebSocket-Extensions: "permessage-deflate"`},
		{"other subprotocol", sampleHead + "Sec-WebSocket-Protocol: chat\r\n", `wrong Sec-WebSocket-Protocol: "chat"`},
		{"two subprotocols", sampleHead + "Sec-WebSocket-Protocol: " + tocsin.Subprotocol + "\r\nSec-WebSocket-Protocol: chat\r\n", "wrong Sec-WebSocket-Protocol"},
		{"refusal", "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n", "403 Forbidden"},
		{"status 099", "HTTP/1.1 099 ?\r\nContent-Length: 0\r\n", "refused: 99"},
		{"no HTTP", "SSH-2.0-OpenSSH_9.6\r\n", "malformed HTTP"},
		{"no field", sampleHead + "hello\r\n", "malformed MIME header"},
	} {
		for how, read := range readings {
			_, err := readAnswer(read(strings.NewReader(tt.head+"\r\n")), sampleKey)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s, %s: %v, want %q in it", tt.name, how, err, tt.want)
			}
		}
	}
}

// No beginning of an answer is taken for the whole.
func TestHalfAnAnswer(t *testing.T) {
	for cut := range len(sampleHead + "\r\n") {
		if _, err := readAnswer(strings.NewReader((sampleHead + "\r\n")[:cut]), sampleKey); err == nil {
			t.Errorf("%d bytes are an answer", cut)
		}
	}
}

func TestHeadOfExactlyTheBound(t *testing.T) {
	for size, ok := range map[int]bool{maxHead: true, maxHead + 1: false} {
		head := sampleHead + "Padding: "
		head += strings.Repeat("x", size-len(head)-4) + "\r\n\r\n"
		for how, read := range readings {
			br, err := readAnswer(read(strings.NewReader(head+"what follows")), sampleKey)
			if ok != (err == nil) {
				t.Errorf("%d bytes, %s: %v", size, how, err)
			}
			if br == nil {
				continue
			}
			if rest, _ := io.ReadAll(br); string(rest) != "what follows" {
				t.Errorf("%d bytes, %s: %q follows", size, how, rest)
			}
		}
	}
}

// counted is a connection that counts what is read from it.
type counted struct {
	net.Conn
	n *atomic.Int64
}

func (c counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.n.Add(int64(n))
	return n, err
}

// serveRaw gives every connection to serve, over TCP, and returns a NetDial that
// reaches it and counts the bytes that the client reads.
func serveRaw(t *testing.T, serve func(net.Conn)) (dial func(context.Context, string, string) (net.Conn, error), read *atomic.Int64) {
	t.Helper()
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(conn)
			}()
		}
	}()
	read = new(atomic.Int64)
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", ln.Addr().String())
		return counted{conn, read}, err
	}, read
}

// A server that goes on with its head for ever costs 16 KiB (docs/faults.md X15).
func TestHeadIsBounded(t *testing.T) {
	for _, tt := range []struct{ name, begin, again string }{
		{"status line", "HTTP/1.1 101 ", "x"},
		{"no line at all", "", "x"},
		{"header line", switching + "A: ", "xxxxxxxx"},
		{"header name", switching, "xxxxxxxx"},
		{"folded line", switching + "A: x\r\n", " x\r\n"},
		{"fields", switching, "A: x\r\n"},
		{"interim answers", "", "HTTP/1.1 100 Continue\r\n\r\n"},
		{"head of a refusal", "HTTP/1.1 503 Service Unavailable\r\nA: ", "xxxxxxxx"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dial, read := serveRaw(t, func(conn net.Conn) {
				_, _ = io.WriteString(conn, tt.begin)
				endless := []byte(strings.Repeat(tt.again, 4096))
				for {
					if _, err := conn.Write(endless); err != nil {
						return
					}
				}
			})
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := Dial(t.Context(), "ws://tocsin.test/ws", Options{NetDial: dial})
			runtime.ReadMemStats(&after)
			if err == nil || !strings.Contains(err.Error(), "head of the server's answer is over 16384 bytes") {
				t.Errorf("got %v", err)
			}
			if n := read.Load(); n != maxHead {
				t.Errorf("read %d bytes, want %d", n, maxHead)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 4<<20 {
				t.Errorf("allocated %d bytes", n)
			}
		})
	}
}

// The body of a refusal is told as far as it is short, and not read to its end.
func TestRefusalWithoutEnd(t *testing.T) {
	for name, head := range map[string]string{
		"length":   "Content-Length: 99999999999\r\n",
		"chunks":   "Transfer-Encoding: chunked\r\n",
		"no bound": "",
	} {
		t.Run(name, func(t *testing.T) {
			dial, read := serveRaw(t, func(conn net.Conn) {
				_, _ = io.WriteString(conn, "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\n"+head+"\r\n")
				for {
					if _, err := io.WriteString(conn, "10\r\nnot so many ples\r\n"); err != nil {
						return
					}
				}
			})
			_, err := Dial(t.Context(), "ws://tocsin.test/ws", Options{NetDial: dial})
			refused, ok := errors.AsType[*HandshakeError](err)
			if !ok || refused.Status != 429 || refused.RetryAfter != 7*time.Second || len(refused.Reason) > maxRefusal {
				t.Errorf("got %v", err)
			}
			if n := read.Load(); n > maxHead {
				t.Errorf("read %d bytes of the refusal", n)
			}
		})
	}
}

func TestUpgradeRequest(t *testing.T) {
	run(t, func(t *testing.T, _ *fake) {
		header := http.Header{
			"Authorization":            {"Bearer x"},
			"Cookie":                   {"a=b"},
			"Sec-Websocket-Extensions": {"permessage-deflate"},
			"Sec-Websocket-Protocol":   {"chat"},
		}
		near, far := net.Pipe()
		_, err := Dial(t.Context(), "ws://tocsin.test:8080/a%20b?user=ann#here", Options{
			Header: header,
			NetDial: func(_ context.Context, network, addr string) (net.Conn, error) {
				if network != "tcp" || addr != "tocsin.test:8080" {
					t.Errorf("dialed %s %s", network, addr)
				}
				go func() {
					defer far.Close()
					req, err := http.ReadRequest(bufio.NewReader(far))
					if err != nil {
						t.Error(err)
						return
					}
					if req.Method != http.MethodGet || req.RequestURI != "/a%20b?user=ann" || req.Host != "tocsin.test:8080" || req.Proto != "HTTP/1.1" {
						t.Errorf("got %s %s %s, Host %s", req.Method, req.RequestURI, req.Proto, req.Host)
					}
					key := req.Header.Get("Sec-WebSocket-Key")
					if len(key) != 24 {
						t.Errorf("key %q", key)
					}
					for name, want := range map[string]string{
						"Authorization": "Bearer x", "Cookie": "a=b", "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
						"Sec-WebSocket-Protocol": tocsin.Subprotocol, "Sec-WebSocket-Extensions": "",
					} {
						if got := strings.Join(req.Header.Values(name), "; "); got != want {
							t.Errorf("%s: %q, want %q", name, got, want)
						}
					}
				}()
				return near, nil
			},
		})
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Error(err)
		}
		if header.Get("Sec-WebSocket-Protocol") != "chat" || header.Get("Upgrade") != "" {
			t.Errorf("the caller's header became %v", header)
		}
	})
}

func TestDefaultPorts(t *testing.T) {
	for url, want := range map[string]string{
		"ws://tocsin.test/": "tocsin.test:80", "wss://tocsin.test/": "tocsin.test:443", "ws://[::1]/": "[::1]:80", "wss://[::1]:8443/": "[::1]:8443",
	} {
		no := errors.New("no")
		_, err := Dial(t.Context(), url, Options{NetDial: func(_ context.Context, _, addr string) (net.Conn, error) {
			if addr != want {
				t.Errorf("%s: dialed %s, want %s", url, addr, want)
			}
			return nil, no
		}})
		if !errors.Is(err, no) {
			t.Errorf("%s: %v", url, err)
		}
	}
}

func TestTLS(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u := ws.HTTPUpgrader{Protocol: func(name string) bool { return name == tocsin.Subprotocol }}
		conn, _, _, err := u.Upgrade(r, w)
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = conn.Write(wire.AppendFrame(nil, ws.OpText, []byte(welcome)))
		if f, err := readFrame(conn); err != nil || f.Header.OpCode != ws.OpClose {
			t.Errorf("got %+v, %v, want a Close frame", f.Header, err)
		}
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // the refused certificate
	server.StartTLS()
	defer server.Close()
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	url := "wss" + strings.TrimPrefix(server.URL, "https")
	config := &tls.Config{RootCAs: roots}
	c, err := Dial(t.Context(), url, Options{TLS: config, Header: http.Header{"X": {"y"}}})
	if err != nil {
		t.Fatal(err)
	}
	if c.Welcome().User != "ann" || config.ServerName != "" {
		t.Errorf("welcome %+v, config's name %q", c.Welcome(), config.ServerName)
	}
	_ = c.Close()
	<-c.Done()
	if _, err := Dial(t.Context(), url, Options{}); !strings.Contains(fmt.Sprint(err), "certificate") {
		t.Errorf("without the root: %v", err)
	}
}

// Every answer is judged, and judged the same however it arrives; no more of it
// is read than the bounds allow.
func FuzzAnswer(f *testing.F) {
	for _, head := range []string{
		sampleHead + "\r\n\x81\x02{}",
		"HTTP/1.1 103 Early Hints\r\n\r\n" + sampleHead + "Sec-WebSocket-Protocol: tocsin.v1\r\n\r\n",
		"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 3\r\nContent-Length: 4\r\n\r\nbusy",
		"HTTP/1.1 401 Unauthorized\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n",
		switching + "Connection: a,\r\n b\r\n\r\n",
	} {
		f.Add([]byte(head), byte(0))
		f.Add([]byte(head[:len(head)/2]), byte('x'))
	}
	f.Fuzz(func(t *testing.T, b []byte, endless byte) {
		var verdicts, follows []string
		for _, read := range readings {
			tail := io.LimitReader(fill(endless), 1<<20)
			all := &counter{r: io.MultiReader(bytes.NewReader(b), tail)}
			br, err := readAnswer(read(all), sampleKey)
			if _, refused := errors.AsType[*HandshakeError](err); !refused && all.n > maxHead {
				t.Fatalf("read %d bytes of the head", all.n)
			}
			if all.n > 4*maxHead {
				t.Fatalf("read %d bytes of the refusal", all.n)
			}
			verdicts = append(verdicts, fmt.Sprint(err))
			if err == nil {
				rest, _ := io.ReadAll(io.LimitReader(br, 64))
				follows = append(follows, string(rest))
			}
		}
		if verdicts[0] != verdicts[1] || len(follows) == 2 && follows[0] != follows[1] {
			t.Fatalf("%q, followed by %q", verdicts, follows)
		}
	})
}

// fill reads as the same byte for ever.
type fill byte

func (f fill) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(f)
	}
	return len(b), nil
}

// counter counts what is read.
type counter struct {
	r io.Reader
	n int
}

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += n
	return n, err
}
