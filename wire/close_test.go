package wire

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/gobwas/ws"
)

// closeRanges is RFC 6455 section 7.4 and the IANA close code registry,
// written down again: what a peer may put into a Close frame.
var closeRanges = []struct {
	first, last int
	ok          bool
	why         string
}{
	{0, 999, false, "not used, 7.4.2"},
	{1000, 1003, true, "7.4.1"},
	{1004, 1004, false, "reserved, 7.4.1"},
	{1005, 1006, false, "never on the wire, 7.4.1"},
	{1007, 1011, true, "7.4.1"},
	{1012, 1014, true, "IANA registry"},
	{1015, 1015, false, "never on the wire, 7.4.1"},
	{1016, 2999, false, "kept for the protocol and not assigned, 7.4.2"},
	{3000, 3999, true, "libraries and frameworks, 7.4.2"},
	{4000, 4999, true, "private use, 7.4.2"},
	{5000, 65535, false, "outside the ranges of 7.4.2"},
}

func TestValidReceivedEveryCode(t *testing.T) {
	next := 0
	for _, r := range closeRanges {
		if r.first != next {
			t.Fatalf("the table has a hole or overlap at %d", next)
		}
		for code := r.first; code <= r.last; code++ {
			if got := CloseCode(code).ValidReceived(); got != r.ok {
				t.Errorf("ValidReceived(%d) = %v, want %v: %s", code, got, r.ok, r.why)
			}
		}
		next = r.last + 1
	}
	if next != 1<<16 {
		t.Fatalf("the table ends at %d", next)
	}
}

func TestComeBack(t *testing.T) {
	comeBack := map[CloseCode]bool{1001: true, 1006: true, 1011: true, 1012: true, 1013: true}
	for code := range 1 << 16 {
		want := comeBack[CloseCode(code)] || code >= 3000 && code <= 3499
		if got := CloseCode(code).ComeBack(); got != want {
			t.Errorf("ComeBack(%d) = %v, want %v", code, got, want)
		}
	}
}

// TestCloseCodesAreSendable keeps the table to codes that a strict client
// accepts, with reasons that fit a control frame.
func TestCloseCodesAreSendable(t *testing.T) {
	for code, reason := range closeReasons {
		if !code.ValidReceived() {
			t.Errorf("%d %s may not be sent", code, reason)
		}
		if got := code.String(); got != reason || reason == "" || len(reason) > 123 {
			t.Errorf("String(%d) = %q", code, got)
		}
	}
	if got := CloseCode(4321).String(); got != "4321" {
		t.Errorf("String(4321) = %q", got)
	}
}

func TestCloseCodesForApps(t *testing.T) {
	for code := range 1 << 16 {
		want := code == 1000 || code >= 3000 && code < 5000
		if got := CloseCode(code).ForApps(); got != want {
			t.Errorf("ForApps(%d) = %v", code, got)
		}
	}
}

func TestAppendClose(t *testing.T) {
	for _, c := range []struct{ name, reason, want string }{
		{"none", "", ""},
		{"short", "shutdown", "shutdown"},
		{"full", strings.Repeat("x", 123), strings.Repeat("x", 123)},
		{"cut", strings.Repeat("x", 200), strings.Repeat("x", 123)},
		{"cut before a two-byte character", strings.Repeat("x", 122) + "é", strings.Repeat("x", 122)},
		{"cut before a four-byte character", strings.Repeat("x", 120) + "🔔", strings.Repeat("x", 120)},
		{"not UTF-8", "a\xffb", "ab"},
		{"cut inside many", strings.Repeat("é", 100), strings.Repeat("é", 61)},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := AppendClose(nil, CloseShutdown, c.reason)
			h, n := ParseHeader(b)
			if n != 2 || h.OpCode != ws.OpClose || !h.Fin || h.Masked || int(h.Length) != len(b)-2 || h.Length > 125 {
				t.Fatalf("header %+v of %d bytes", h, len(b))
			}
			if code := CloseCode(b[2])<<8 | CloseCode(b[3]); code != CloseShutdown {
				t.Errorf("code %d", code)
			}
			if reason := string(b[4:]); reason != c.want || !utf8.ValidString(reason) {
				t.Errorf("reason %q, want %q", reason, c.want)
			}
		})
	}
}
