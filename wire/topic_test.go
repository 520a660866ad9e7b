package wire

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// Names have no spaces and no control characters, and $ is reserved
// (docs/faults.md A8).
func TestNames(t *testing.T) {
	for _, c := range []struct {
		name        string
		topic, user bool
	}{
		{"a", true, true},
		{"news", true, true},
		{"news/sport.2026:x-y_z", true, true},
		{"a$", true, true},
		{"Ünïcödé", true, true},
		{"日本", true, true},
		{"🔔", true, true},
		{"\ufffd", true, true}, // the character itself is UTF-8
		{`"quoted\"`, true, true},
		{strings.Repeat("x", 255), true, true},
		{strings.Repeat("é", 127) + "x", true, true},
		{"*", true, true},

		{"$user", false, true},
		{"$", false, true},

		{"", false, false},
		{strings.Repeat("x", 256), false, false},
		{strings.Repeat("é", 128), false, false},
		{" ", false, false},
		{"a b", false, false},
		{"a ", false, false},
		{"\ta", false, false},
		{"a\n", false, false},
		{"a\x00b", false, false},
		{"a\x7f", false, false},
		{"a\u0085", false, false}, // next line
		{"a\u009f", false, false}, // a C1 control
		{"a\u00a0", false, false}, // no-break space
		{"a\u2003b", false, false},
		{"a\u2028b", false, false},
		{"\u3000", false, false},
		{"\xff", false, false},
		{"a\xc3", false, false},
		{"\xed\xa0\x80", false, false},
		{"\ufffd\xff", false, false},
		{"\xc0\xaf", false, false},
	} {
		wantName(t, "CheckTopic", c.name, CheckTopic(c.name), CheckTopic([]byte(c.name)), c.topic)
		wantName(t, "CheckUser", c.name, CheckUser(c.name), CheckUser([]byte(c.name)), c.user)
	}
}

func wantName(t *testing.T, check, name string, asString, asBytes *Error, ok bool) {
	t.Helper()
	for _, err := range []*Error{asString, asBytes} {
		switch {
		case (err == nil) != ok:
			t.Errorf("%s(%q) = %v, want ok %v", check, name, err, ok)
		case err != nil && (err.Code != BadTopic || err.Message == ""):
			t.Errorf("%s(%q) = %+v, want code %s and a sentence", check, name, err, BadTopic)
		}
	}
}

// FuzzTopic holds the checks against a plain model (docs/faults.md A8).
func FuzzTopic(f *testing.F) {
	for _, name := range []string{
		"", "news", "$user", "a b", "a\x00", "é", "\xff", "\ufffd", "\u00a0", "\u2029",
		strings.Repeat("x", 255), strings.Repeat("x", 256), strings.Repeat("é", 128), "a/b.c:d", "日本",
	} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		bad := func(r rune) bool { return unicode.Is(unicode.Cc, r) || unicode.Is(unicode.White_Space, r) }
		user := name != "" && len(name) <= 255 && utf8.ValidString(name) && strings.IndexFunc(name, bad) < 0
		topic := user && name[0] != '$'
		wantName(t, "CheckTopic", name, CheckTopic(name), CheckTopic([]byte(name)), topic)
		wantName(t, "CheckUser", name, CheckUser(name), CheckUser([]byte(name)), user)
	})
}
