package engine

import (
	"bytes"
	"encoding/base64"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	coder "github.com/coder/websocket"
	gorilla "github.com/gorilla/websocket"

	"github.com/tocsin-push/tocsin/internal/wstest"
)

// judges are those who say whether a request is to be upgraded. All but the
// first are behind net/http.
type judges struct {
	conns  chan net.Conn
	server *http.Server
	ended  chan error
}

const (
	judgeServe     = "Serve"
	judgeServeHTTP = "ServeHTTP"
	judgeGorilla   = "gorilla"
	judgeCoder     = "coder"
)

// newJudges starts a net/http server on connections that are no sockets.
func newJudges(t testing.TB) *judges {
	j := &judges{conns: make(chan net.Conn), ended: make(chan error, 1)}
	j.server = &http.Server{Handler: http.HandlerFunc(j.serve), ErrorLog: log.New(io.Discard, "", 0)}
	go func() { j.ended <- j.server.Serve(j) }()
	t.Cleanup(func() {
		j.server.Close()
		<-j.ended
	})
	return j
}

// Accept, Close and Addr make j a listener.
func (j *judges) Accept() (net.Conn, error) {
	if c, ok := <-j.conns; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}

func (j *judges) Close() error {
	close(j.conns)
	return nil
}

func (j *judges) Addr() net.Addr { return &net.UnixAddr{Name: "memory", Net: "unix"} }

// serve lets the judge decide whom the connection is for.
func (j *judges) serve(rw http.ResponseWriter, r *http.Request) {
	c := r.Context().Value(http.LocalAddrContextKey).(*recorded)
	mux := http.NewServeMux()
	mux.HandleFunc("/ws", func(rw http.ResponseWriter, r *http.Request) {
		switch c.judge {
		case judgeGorilla:
			upgrader := gorilla.Upgrader{CheckOrigin: func(*http.Request) bool { return true }, Subprotocols: []string{"tocsin.v1"}}
			if conn, err := upgrader.Upgrade(rw, r, nil); err == nil {
				conn.Close()
			}
		case judgeCoder:
			if conn, err := coder.Accept(rw, r, &coder.AcceptOptions{InsecureSkipVerify: true, Subprotocols: []string{"tocsin.v1"}}); err == nil {
				_ = conn.CloseNow()
			}
		case judgeServeHTTP: // as Admit and Enter do, without a descriptor
			if upgrades(RebuildHead(r, "/ws")) {
				rw.WriteHeader(http.StatusSwitchingProtocols)
			}
			conn, buf, err := http.NewResponseController(rw).Hijack()
			if err != nil {
				return
			}
			if early, _ := buf.Peek(buf.Reader.Buffered()); !looksLikeFrame(early) {
				_, _ = conn.Write([]byte(notFrames)) // which are closed with 1002
			}
			conn.Close()
		}
	})
	mux.ServeHTTP(rw, r)
}

// upgrades is the verdict of Serve.
func upgrades(request []byte) bool {
	var scan headScan
	end, bad := scan.find(request)
	if end < 0 || bad != nil {
		return false
	}
	_, bad = parseHead(request[:end], "/ws", spoken)
	return bad == nil && looksLikeFrame(request[end:])
}

// notFrames is what a judge writes who upgrades a request before it has seen that
// what is behind it is not frames.
const notFrames = "not frames"

// verdict says whether judge upgrades request.
func (j *judges) verdict(t testing.TB, judge, request string) bool {
	if judge == judgeServe {
		return upgrades([]byte(request))
	}
	c := &recorded{judge: judge, in: strings.NewReader(request), closed: make(chan struct{})}
	j.conns <- c
	select {
	case <-c.closed:
	case <-time.After(30 * time.Second):
		t.Fatalf("%s does not end: %q", judge, request)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return bytes.HasPrefix(c.out.Bytes(), []byte("HTTP/1.1 101 ")) && !bytes.HasSuffix(c.out.Bytes(), []byte(notFrames))
}

// recorded is a connection on which a whole request has arrived. It is its own
// address, by which the handler finds it.
type recorded struct {
	judge  string
	in     io.Reader
	once   sync.Once
	closed chan struct{}

	mu  sync.Mutex
	out bytes.Buffer
}

func (c *recorded) Read(b []byte) (int, error) { return c.in.Read(b) }

func (c *recorded) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.Write(b)
}

func (c *recorded) Close() error {
	c.once.Do(func() { close(c.closed) })
	return nil
}

func (c *recorded) LocalAddr() net.Addr              { return c }
func (c *recorded) RemoteAddr() net.Addr             { return c }
func (c *recorded) Network() string                  { return "memory" }
func (c *recorded) String() string                   { return "memory" }
func (c *recorded) SetDeadline(time.Time) error      { return nil }
func (c *recorded) SetReadDeadline(time.Time) error  { return nil }
func (c *recorded) SetWriteDeadline(time.Time) error { return nil }

// looked is a request as a careless reader sees it, to tell what is special
// about it.
type looked struct {
	target, version   string
	absolute          bool // the target does not begin with its path
	scheme, authority string
	lines             []string            // of the fields
	fields            map[string][]string // values by name, in lower case
	requestLine       int                 // bytes
	head              int                 // bytes, with the blank line
	early             string              // behind the head
}

func look(request string) (l looked) {
	text, early, _ := strings.Cut(request, "\r\n\r\n")
	l.head, l.early = len(text)+4, early
	lines := strings.Split(text, "\r\n")
	if words := strings.SplitN(lines[0], " ", 3); len(words) == 3 {
		l.target, l.version = words[1], words[2]
	}
	if l.absolute = !strings.HasPrefix(l.target, "/"); l.absolute {
		scheme, rest, _ := strings.Cut(l.target, "://")
		end := strings.IndexAny(rest+"/", "/?")
		l.scheme, l.authority = strings.ToLower(scheme), rest[:end]
	}
	l.requestLine, l.lines, l.fields = len(lines[0]), lines[1:], map[string][]string{}
	for _, line := range l.lines {
		name, value, _ := strings.Cut(line, ":")
		name = strings.ToLower(name)
		l.fields[name] = append(l.fields[name], strings.Trim(value, " \t"))
	}
	return l
}

// list returns the elements of a list field, empty ones too.
func (l looked) list(name string) (elements []string) {
	for _, line := range l.fields[name] {
		for e := range strings.SplitSeq(line, ",") {
			elements = append(elements, strings.Trim(e, " \t"))
		}
	}
	return elements
}

// malformed reports whether a list has an element that is not valid, or none.
func (l looked) malformed(name string) bool {
	e := slices.DeleteFunc(l.list(name), func(e string) bool { return e == "" })
	return l.fields[name] != nil && len(e) == 0 || slices.ContainsFunc(e, func(e string) bool { return !wstest.IsElement(name, e) })
}

// repeated reports whether a field came more than once.
func (l looked) repeated(name string) bool { return len(l.fields[name]) > 1 }

// one returns all values of a field together: with more than one it is no
// value that anybody takes.
func (l looked) one(name string) string { return strings.Join(l.fields[name], "\n") }

func (l looked) anyLine(is func(line string) bool) bool { return slices.ContainsFunc(l.lines, is) }

// over reports whether a length is over a limit, or would be with slack more.
func (l looked) over(slack int) bool {
	return l.head+slack > maxHead || len(l.lines) > maxFields || l.requestLine+2+slack > maxLine ||
		l.anyLine(func(line string) bool { return len(line)+2+slack > maxLine })
}

// looseKey reports whether the key has bits that decode to nothing.
func (l looked) looseKey() bool {
	key := l.one("sec-websocket-key")
	_, loose := base64.StdEncoding.DecodeString(key)
	_, strict := base64.StdEncoding.Strict().DecodeString(key)
	return loose == nil && strict != nil
}

// disagreement is a way in which others may differ from Serve.
type disagreement struct {
	why  string
	by   []string
	mine bool // what Serve does
	when func(l looked) bool
}

const (
	upgraded  = true
	turnedOff = false
)

var (
	gorillaOnly = []string{judgeGorilla}
	coderOnly   = []string{judgeCoder}
	peers       = []string{judgeGorilla, judgeCoder}
	httpOnly    = []string{judgeServeHTTP}
	others      = []string{judgeServeHTTP, judgeGorilla, judgeCoder}
)

// permitted are all disagreements that there are.
var permitted = []disagreement{
	// What net/http changes before anybody behind it sees the request.
	{
		"net/http joins folded lines and takes a bare LF; a server may refuse them: RFC 9112 sections 5.2 and 2.2",
		others, turnedOff, func(l looked) bool {
			return strings.Contains(l.target+l.version, "\n") ||
				l.anyLine(func(s string) bool {
					return strings.Contains(s, "\n") || strings.HasPrefix(s, " ") || strings.HasPrefix(s, "\t")
				})
		},
	},
	{
		"net/http makes one of equal lengths; a server may refuse them: RFC 9110 section 8.6",
		others, turnedOff, func(l looked) bool { return l.repeated("content-length") },
	},
	{
		"net/http answers 417 to an expectation that it does not know; a server may: RFC 9110 section 10.1.1",
		others, upgraded, func(l looked) bool { return l.fields["expect"] != nil },
	},
	{
		"net/http takes no escaped ASCII in the host of a URL; RFC 3986 section 3.2.2 has it",
		others, upgraded, func(l looked) bool { return l.absolute && strings.Contains(l.authority, "%") },
	},
	{
		"net/http shows the host of the target alone, and a malformed Host is refused: RFC 9112 sections 3.2 and 3.2.2",
		others, turnedOff, func(l looked) bool { return l.absolute && !wstest.HasHost(l.one("host")) },
	},
	{
		"net/http trims values, and its own limit is 1 MiB; a server chooses: RFC 9110 section 5.4",
		others, turnedOff, func(l looked) bool { return l.over(0) },
	},
	{
		"net/http puts a space behind each colon, which counts for the limits",
		httpOnly, upgraded, func(l looked) bool { return l.over(100) },
	},
	{
		"what net/http has not read yet arrives behind the 101, and closes the connection with 1002",
		httpOnly, turnedOff, func(l looked) bool { return l.head+len(l.early) > 4<<10 },
	},

	// Where the RFCs are on Serve's side.
	{
		"gorilla upgrades HTTP/1.0, whose Upgrade must be ignored: RFC 9110 section 7.8",
		gorillaOnly, turnedOff, func(l looked) bool { return l.version == "HTTP/1.0" },
	},
	{
		"an absolute target is an http or https URI: RFC 6455 section 4.2.1",
		peers, turnedOff, func(l looked) bool { return l.absolute && l.scheme != "http" && l.scheme != "https" },
	},
	{
		"an absolute target has a host, and userinfo is an error: RFC 9110 sections 4.2.1 and 4.2.4",
		peers, turnedOff, func(l looked) bool { return l.absolute && !wstest.HasHost(l.authority) },
	},
	{
		"a target has no raw bytes and no fragment: RFC 9112 section 3.2",
		peers, turnedOff, func(l looked) bool {
			return strings.ContainsFunc(l.target, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '#' })
		},
	},
	{
		"a Host that is empty or malformed is refused: RFC 9112 section 3.2, RFC 6455 section 4.2.1",
		peers, turnedOff, func(l looked) bool { return !wstest.HasHost(l.one("host")) },
	},
	{
		"the bytes of a body would be taken for frames: RFC 9112 section 6",
		peers, turnedOff, func(l looked) bool {
			return l.fields["transfer-encoding"] != nil || strings.Trim(l.one("content-length"), "0") != ""
		},
	},
	{
		"the subprotocols are not tokens: RFC 6455 section 4.3",
		peers, turnedOff, func(l looked) bool { return l.malformed("sec-websocket-protocol") },
	},
	{
		"malformed extensions fail the connection: RFC 6455 section 9.1",
		peers, turnedOff, func(l looked) bool { return l.malformed("sec-websocket-extensions") },
	},
	{
		"the options of Connection are not tokens: RFC 9110 section 7.6.1",
		peers, turnedOff, func(l looked) bool { return l.malformed("connection") },
	},
	{
		"what Upgrade lists is no protocol, websocket with a Kelvin sign for one: RFC 9110 section 7.8",
		peers, turnedOff, func(l looked) bool { return l.malformed("upgrade") },
	},
	{
		"the key must come once: RFC 6455 section 11.3.1",
		gorillaOnly, turnedOff, func(l looked) bool { return l.repeated("sec-websocket-key") },
	},
	{
		"the version must come once: RFC 6455 section 11.3.5",
		peers, turnedOff, func(l looked) bool { return l.repeated("sec-websocket-version") },
	},
	{
		"a client names one version, not a list: RFC 6455 section 11.3.5",
		gorillaOnly, turnedOff, func(l looked) bool { return len(l.list("sec-websocket-version")) > 1 },
	},
	{
		"the last bits of a key that are no part of it are zero, a decoder may insist: RFC 4648 section 3.5",
		peers, turnedOff, looked.looseKey,
	},
	{
		"what is behind the head is not a frame: RFC 6455 section 5.2",
		coderOnly, turnedOff, func(l looked) bool { return l.early != "" },
	},

	// Where the others are too strict, or may be.
	{
		"gorilla closes when a frame comes before the 101; the client should have waited: RFC 6455 section 4.1",
		gorillaOnly, upgraded, func(l looked) bool { return l.early != "" },
	},
	{
		"gorilla stops at an empty element, which is to be ignored: RFC 9110 section 5.6.1.2",
		gorillaOnly, upgraded, func(l looked) bool { return slices.Contains(append(l.list("connection"), l.list("upgrade")...), "") },
	},
	{
		"gorilla stops at a protocol with a version: RFC 9110 section 7.8",
		gorillaOnly, upgraded, func(l looked) bool { return strings.Contains(l.one("upgrade"), "/") },
	},
}

// compare asks every judge about request. It counts which disagreements were
// seen, and fails on any that is not permitted.
func (j *judges) compare(t testing.TB, request string, seen map[string]int) (taken bool) {
	t.Helper()
	mine, l := j.verdict(t, judgeServe, request), look(request)
	for _, judge := range others {
		if j.verdict(t, judge, request) == mine {
			continue
		}
		i := slices.IndexFunc(permitted, func(d disagreement) bool {
			return d.mine == mine && slices.Contains(d.by, judge) && d.when(l)
		})
		if i < 0 {
			t.Errorf("Serve upgrades: %v, %s: %v: %q", mine, judge, !mine, request)
		} else if seen != nil {
			seen[permitted[i].why]++
		}
	}
	return mine
}

// FuzzUpgradeBesidePeers compares the verdict on a request, after up to four
// changes, with that of ServeHTTP and with those of two well-known servers
// behind net/http.
func FuzzUpgradeBesidePeers(f *testing.F) {
	all := changes()
	for i, s := range headSeeds() {
		f.Add(s, []byte{})
		f.Add(s, []byte{byte(i), byte(11 * i), byte(101 * i)})
	}
	j := newJudges(f)
	f.Fuzz(func(t *testing.T, request string, picks []byte) {
		for _, i := range picks[:min(len(picks), 4)] {
			request = all[int(i)%len(all)](request)
		}
		j.compare(t, request, nil)
	})
}

// TestUpgradeBesidePeers does that with requests made by rules, in which every
// permitted disagreement occurs.
func TestUpgradeBesidePeers(t *testing.T) {
	j, seen, taken := newJudges(t), map[string]int{}, 0
	requests := mutated(3000)
	for _, request := range requests {
		if j.compare(t, request, seen) {
			taken++
		}
	}
	if taken < 300 || taken > 2700 {
		t.Errorf("%d of %d are upgraded, which tells little", taken, len(requests))
	}
	for _, d := range permitted {
		if seen[d.why] == 0 {
			t.Errorf("this disagreement does not occur: %s", d.why)
		}
	}
}

// mutated returns n requests: every change of changes alone, then up to three
// of them together, for every other request with a byte put in or replaced.
func mutated(n int) (requests []string) {
	rng := rand.New(rand.NewPCG(6455, 9112))
	good := wstest.Request("tocsin.test", "/ws", "dGhlIHNhbXBsZSBub25jZQ==", "Origin: http://tocsin.test")
	all := changes()
	for i := range n {
		request := good
		if i < len(all) {
			request = all[i](request)
		} else {
			for range 1 + rng.IntN(3) {
				request = all[rng.IntN(len(all))](request)
			}
			if at := rng.IntN(len(request)); rng.IntN(2) == 0 { // and one byte
				request = request[:at] + string(rune(rng.IntN(128))) + request[at+rng.IntN(2):]
			}
		}
		requests = append(requests, request)
	}
	return requests
}

// changes are what can be done to a request.
func changes() (all []func(string) string) {
	replace := func(old string, by ...string) {
		for _, s := range by {
			all = append(all, func(r string) string { return strings.Replace(r, old, s, 1) })
		}
	}
	add := func(lines ...string) {
		for _, s := range lines {
			all = append(all, func(r string) string { return strings.Replace(r, "\r\n\r\n", "\r\n"+s+"\r\n\r\n", 1) })
		}
	}
	behind := func(early ...string) {
		for _, s := range early {
			all = append(all, func(r string) string { return r + s })
		}
	}
	replace("GET ", "POST ", "HEAD ", "get ", "GET  ", "CONNECT ", "OPTIONS ", "", "G\x00T ", "\r\nGET ")
	replace("/ws", "/ws?", "/ws?a=b", "/ws?a%zz", "/ws#a", "/ws?a#b", "/ws?\xe9", "/ws\x01", "/ws/", "/", "*", "ws", "//ws", "/./ws", "/%77s", "/%77%73",
		"/w%", "/%00ws", "/%2Fws", "%2Fws", "http://a/ws", "HTTPS://[::1]:443/ws", "http://a/%77s", "http://a", "http://a?b", "http:///ws", "http://u@a/ws",
		"http://a:b/ws", "http://a,b:/ws", "http://a%41/ws", "http://[a]/ws", "ws://a/ws", "wss://a/ws", "http:/ws", "a:80", "/ws?u=http://a/b", "/ws ", "/ws /ws",
		"/ws?"+strings.Repeat("a", 8000), "/ws?"+strings.Repeat("a", 9000))
	replace("HTTP/1.1", "HTTP/1.0", "HTTP/1.2", "HTTP/1.9", "HTTP/1.10", "HTTP/2.0", "HTTP/0.9", "http/1.1", "HTTP/1.1 ", "HTTP/1,1", "")
	replace("Host: tocsin.test", "Host:", "X: y", "Host: a,b", "Host: a b", "Host: a:80", "Host: a:b", "Host: a:1:2", "Host: [::1]:1", "Host: [::1", "Host: a/b", "Host: u@a", "host:\ta")
	replace("Upgrade: websocket", "Upgrade: h2c, websocket", "Upgrade: websocket, h2c", "Upgrade: h2c/2, WebSocket", "Upgrade: websoc\u212aet", "Upgrade: h2c",
		"Upgrade: ,websocket", "Upgrade: websocket,,", "Upgrade:\twebsocket\t", "Upgrade: web socket", "Upgrade: websocket/1", "Upgrade: websocket, h 2", "Upgrade: h2c\r\nUpgrade: websocket", "Upgrade:")
	replace("Connection: Upgrade", "Connection: keep-alive, upgrade", "Connection: keep-alive,\tUpgrade", "Connection: ,Upgrade", "Connection: Upgrade,", "Connection: close",
		"Connection: close, Upgrade", "Connection: a@b, Upgrade", "Connection: Upgrade, a b", "Connection: keep-alive\r\nConnection: Upgrade", "Connection:", "Connection: \"Upgrade\"", "X: y")
	const key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
	replace(key, "X: y", "Sec-WebSocket-Key:", key[:len(key)-3]+"R==", key[:len(key)-1], key+"=", key[:len(key)-2], strings.Replace(key, "dG", "-_", 1), strings.Replace(key, "dG", "", 1), key+"\t", "sec-websocket-key:"+key[19:])
	replace("Version: 13", "Version: 8", "Version: 13, 8", "Version: 8, 13", "Version: 013", "Version:", "Version:\t13 ", "Version: 13\r\nSec-WebSocket-Version: 13", "Version: 13\r\nSec-WebSocket-Version: 8")
	add(key, "Host: b", "Connection: keep-alive", "Upgrade: h2c", "Upgrade: websocket", "Expect: 100-continue", "Expect: more", "Pragma: no-cache", "X: \xff", "X: \x01", "X: a\rb", "X: \x00", "X:", ": y", "X", "X Y: z", "X : y", "X: y\r\n z", "X: y\nZ: a",
		"Content-Length: 0", "Content-Length: 00", "Content-Length: 0\r\nContent-Length: 0", "Content-Length: 5", "Content-Length: +0", "Content-Length: 0, 0", "Content-Length:", "Content-Length: -1",
		"Transfer-Encoding: chunked", "Transfer-Encoding: identity", "Transfer-Encoding: chunked\r\nContent-Length: 0", "Trailer: X",
		"X: "+strings.Repeat(" ", 9000), "X: y"+strings.Repeat("\r\nX:"+strings.Repeat("y", 5000), 3), "X:"+strings.Repeat("y", 8188), "X: "+strings.Repeat("y", 8100), "X: "+strings.Repeat("y", 8400), strings.Repeat("X: y\r\n", 57)+"X: y", strings.Repeat("X: y\r\n", 60)+"X: y")
	for _, e := range []string{"tocsin.v1", "a,\ttocsin.v1", "a,,b", "a,", ",", "", "a b", "a;b", "a@b", `"a"`, "a/b", "TOCSIN.V1", "a\r\nSec-WebSocket-Protocol: tocsin.v1", "\r\nSec-WebSocket-Protocol: a"} {
		add("Sec-WebSocket-Protocol: " + e)
	}
	for _, e := range []string{"permessage-deflate; client_max_window_bits", `a; b="c"`, `a; b="c\d" , e`, ";", `"a`, "a b", "a;", "a; b c", "a; b=", `a; b="c d"`, `a; b="c,d"`, "", ",", "a\r\nSec-WebSocket-Extensions: b"} {
		add("Sec-WebSocket-Extensions: " + e)
	}
	behind(string(wstest.Encode(wstest.Text("early"))), string(wstest.Encode(wstest.Text("early"), wstest.Ping("")))[:3], "\x81", "hello", "\x81\x05hello", "\r\n", anotherRequest)
	// net/http's buffer ends where the head does.
	return append(all, func(r string) string {
		return strings.Replace(r, "\r\n\r\n", "\r\nX: "+strings.Repeat("y", max(0, 4096-len(r)-5))+"\r\n\r\n\x81\x05hello", 1)
	})
}

// anotherRequest is a request behind a request.
const anotherRequest = "GET /ws HTTP/1.1\r\nHost: tocsin.test\r\n\r\n"
