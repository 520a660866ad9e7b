package wire_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/tocsin-push/tocsin/internal/wstest"
	"github.com/tocsin-push/tocsin/wire"
)

var jsonSamples = []string{
	// Valid.
	`null`, `true`, `false`, `0`, `-0`, `-1.5e+10`, `1E9`, `0.0`, `""`, `"x"`, `[]`, `{}`, ` [ ] `, "\t{\r\n}\t",
	`"\u00e9\ud83d\udd14"`, `"\ud800"`, `"\"\\\/\b\f\n\r\t"`, `{"":{"":[]}}`, `[1,2,[3,{"a":[null]}]]`,
	`{"a":1,"a":2}`, "\"\x7f\"", "\"é🔔\"", `"a{[\"]}"`, `123456789012345678901234567890`, `[{}, {} ,[]]`,
	wstest.Nested(32, "[", "", "]"), wstest.Nested(32, `{"a":`, "1", "}"), wstest.Nested(16, `[{"a":`, "1", "}]"),
	// Not valid, or too deep.
	``, ` `, `nul`, `nulll`, `tru`, `True`, `-`, `+1`, `01`, `-01`, `1.`, `.5`, `1e`, `1e+`, `0x1`, `1 2`, `NaN`, `Infinity`,
	`"`, `"\"`, `"\x"`, `"\u12"`, `"\u123g"`, "\"\n\"", "\"\x00\"", `'a'`, `[`, `]`, `[1`, `[1,`, `[1,]`, `[,1]`, `[1 2]`,
	`{`, `}`, `{"a"`, `{"a":`, `{"a":}`, `{"a":1`, `{"a":1,`, `{"a":1,}`, `{a:1}`, `{1:1}`, `{"a" 1}`, `{,}`, `{"a":1 "b":2}`,
	`[}`, `{]`, `[1}`, `{"a":1]`, `[]]`, `{}{}`, `//`, `[1]x`, "\ufeff1", "\"\xff\"", "\"\xed\xa0\x80\"", "\xff", "\"\xc3\"",
	"\u00a01", "1\x00", "\v1",
	wstest.Nested(33, "[", "", "]"), wstest.Nested(33, `{"a":`, "1", "}"), wstest.Nested(1000, "[", "", "]"), strings.Repeat("[", 1000),
}

func TestCheckJSON(t *testing.T) {
	for _, s := range jsonSamples {
		sameVerdict(t, []byte(s))
	}
	// Every cut of a valid value, and every byte of it replaced.
	whole := []byte(` {"a":[1,-2.5e3,"\u00e9\n é"],"b":{"c":null,"d":true},"":false} `)
	for i := range whole {
		sameVerdict(t, whole[:i])
		for c := range 256 {
			b := slices.Clone(whole)
			b[i] = byte(c)
			sameVerdict(t, b)
		}
	}
}

// sameVerdict wants CheckJSON to agree with encoding/json.
func sameVerdict(t *testing.T, b []byte) {
	t.Helper()
	want := json.Valid(b) && utf8.Valid(b) && wstest.JSONDepth(b) <= wire.MaxDepth
	if err := wire.CheckJSON(b); (err == nil) != want {
		t.Errorf("CheckJSON(%.200q) = %v, want ok %v", b, err, want)
	}
}

func FuzzCheckJSON(f *testing.F) {
	for _, s := range jsonSamples {
		f.Add([]byte(s))
	}
	f.Fuzz(sameVerdict)
}

func TestAppendString(t *testing.T) {
	for _, s := range []string{
		"", "plain", `a"b\c/d`, "\x00\x1f\x7f\n\r\t", "é🔔日本", "\u2028\u2029", "</script>",
		"\xff", "a\xc3", "\xed\xa0\x80", "\xf4\x90\x80\x80", "é\xff🔔\xf0\x9f",
	} {
		for _, b := range [][]byte{wire.AppendString([]byte("x"), s), wire.AppendString([]byte("x"), []byte(s))} {
			var got string
			if err := json.Unmarshal(b[1:], &got); err != nil || !utf8.Valid(b) {
				t.Errorf("AppendString(%q) = %q: %v", s, b, err)
				continue
			}
			if want := string([]rune(s)); got != want { // []rune puts U+FFFD for each byte that is not UTF-8
				t.Errorf("AppendString(%q) reads back as %q", s, got)
			}
		}
	}
}
