package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"
)

// The scanner below checks JSON (RFC 8259) and hands out the fields of one
// object as slices of the input. encoding/json allocates for each of them; the
// read path may not.

var (
	errJSON  = errors.New("not valid JSON")
	errUTF8  = errors.New("JSON is not UTF-8")
	errDepth = fmt.Errorf("JSON is nested deeper than %d", MaxDepth)
)

// CheckJSON reports why b is not one JSON value of at most [MaxDepth] levels
// in valid UTF-8.
func CheckJSON(b []byte) error {
	end, err := skipValue(b, skipSpace(b, 0), MaxDepth)
	if err != nil {
		return err
	}
	return checkEnd(b, end)
}

// fields walks the members of one JSON object, each checked as it is passed.
type fields struct {
	b     []byte
	i     int
	depth int
	begun bool
}

// next returns the next member: its key without quotes, its value as it
// stands. done is true at the closing brace; i then stands behind it.
func (f *fields) next() (key, val []byte, done bool, err error) {
	f.i = skipSpace(f.b, f.i)
	if !f.begun {
		if f.at() != '{' {
			return nil, nil, false, errObject
		}
		f.begun = true
		f.i = skipSpace(f.b, f.i+1)
		if f.at() == '}' {
			f.i++
			return nil, nil, true, nil
		}
	} else {
		switch f.at() {
		case '}':
			f.i++
			return nil, nil, true, nil
		case ',':
			f.i = skipSpace(f.b, f.i+1)
		default:
			return nil, nil, false, errJSON
		}
	}
	start := f.i
	if f.i, err = skipString(f.b, f.i); err != nil {
		return nil, nil, false, err
	}
	key = f.b[start+1 : f.i-1]
	if f.i = skipSpace(f.b, f.i); f.at() != ':' {
		return nil, nil, false, errJSON
	}
	start = skipSpace(f.b, f.i+1)
	if f.i, err = skipValue(f.b, start, f.depth-1); err != nil {
		return nil, nil, false, err
	}
	return unescape(key), f.b[start:f.i], false, nil
}

// at returns the byte at i, 0 behind the end.
func (f *fields) at() byte {
	if f.i < len(f.b) {
		return f.b[f.i]
	}
	return 0
}

func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\t' || b[i] == '\n' || b[i] == '\r') {
		i++
	}
	return i
}

// skipValue returns the index behind the value that starts at i.
func skipValue(b []byte, i, depth int) (int, error) {
	if i >= len(b) {
		return i, errJSON
	}
	switch c := b[i]; {
	case c == '"':
		return skipString(b, i)
	case c == '{':
		if depth <= 0 {
			return i, errDepth
		}
		f := fields{b: b, i: i, depth: depth}
		for {
			if _, _, done, err := f.next(); done || err != nil {
				return f.i, err
			}
		}
	case c == '[':
		if depth <= 0 {
			return i, errDepth
		}
		return walkArray(b, i, depth-1, nil)
	case c == '-' || c >= '0' && c <= '9':
		return skipNumber(b, i)
	}
	for _, word := range [...]string{"true", "false", "null"} {
		if len(b)-i >= len(word) && string(b[i:i+len(word)]) == word {
			return i + len(word), nil
		}
	}
	return i, errJSON
}

// walkArray returns the index behind the array that starts at i, whose elements
// may have depth levels. It calls yield, if there is one, for each of them and
// stops at its first error.
func walkArray(b []byte, i, depth int, yield func(val []byte) error) (int, error) {
	if i = skipSpace(b, i+1); i < len(b) && b[i] == ']' {
		return i + 1, nil
	}
	for {
		end, err := skipValue(b, i, depth)
		if err == nil && yield != nil {
			err = yield(b[i:end])
		}
		if err != nil {
			return end, err
		}
		switch i = skipSpace(b, end); {
		case i < len(b) && b[i] == ',':
			i = skipSpace(b, i+1)
		case i < len(b) && b[i] == ']':
			return i + 1, nil
		default:
			return i, errJSON
		}
	}
}

func skipString(b []byte, i int) (int, error) {
	if i >= len(b) || b[i] != '"' {
		return i, errJSON
	}
	for i++; i < len(b); i++ {
		switch c := b[i]; {
		case c == '"':
			return i + 1, nil
		case c < ' ':
			return i, errJSON
		case c == '\\':
			if i++; i >= len(b) {
				return i, errJSON
			}
			switch b[i] {
			case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			case 'u':
				for range 4 {
					if i++; i >= len(b) || !isHex(b[i]) {
						return i, errJSON
					}
				}
			default:
				return i, errJSON
			}
		}
	}
	return i, errJSON
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'f'
}

func skipNumber(b []byte, i int) (int, error) {
	digits := func() bool {
		start := i
		for i < len(b) && b[i] >= '0' && b[i] <= '9' {
			i++
		}
		return i > start
	}
	if b[i] == '-' {
		i++
	}
	if i < len(b) && b[i] == '0' {
		i++
	} else if !digits() {
		return i, errJSON
	}
	if i < len(b) && b[i] == '.' {
		if i++; !digits() {
			return i, errJSON
		}
	}
	if i < len(b) && b[i]|0x20 == 'e' {
		if i++; i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		if !digits() {
			return i, errJSON
		}
	}
	return i, nil
}

// unescape returns what the inside of a JSON string stands for. Only one with
// a backslash is copied.
func unescape(s []byte) []byte {
	if bytes.IndexByte(s, '\\') >= 0 {
		return unescapeSlow(s)
	}
	return s
}

func unescapeSlow(s []byte) []byte {
	quoted := append(append([]byte{'"'}, s...), '"')
	var out string
	if json.Unmarshal(quoted, &out) != nil {
		return s
	}
	return []byte(out)
}

// stringValue returns the content of a JSON string; ok is false when val is
// not one.
func stringValue(val []byte) (s []byte, ok bool) {
	if len(val) < 2 || val[0] != '"' {
		return nil, false
	}
	return unescape(val[1 : len(val)-1]), true
}

// uintValue returns a JSON number that is a whole one without exponent.
func uintValue(val []byte) (n uint64, ok bool) {
	if len(val) == 0 || len(val) > 19 {
		return 0, false
	}
	for _, c := range val {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + uint64(c-'0')
	}
	return n, true
}

const hexDigits = "0123456789abcdef"

// AppendString appends s as a JSON string. Bytes that are not UTF-8 become
// U+FFFD, so that the frame stays valid text.
func AppendString[T ~string | ~[]byte](dst []byte, s T) []byte {
	dst = append(dst, '"')
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
			i++
		case c < ' ':
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			i++
		case c < utf8.RuneSelf:
			dst = append(dst, c)
			i++
		default:
			r, size := utf8.DecodeRuneInString(string(s[i:min(len(s), i+utf8.UTFMax)]))
			dst = utf8.AppendRune(dst, r)
			i += size
		}
	}
	return append(dst, '"')
}
