package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"unicode/utf8"
)

// The scanner below checks JSON (RFC 8259) and hands out the members of an
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

// Object walks the members of one JSON object of at most [MaxDepth] levels. It
// checks each as it passes it, but not that strings are UTF-8.
type Object struct {
	b     []byte
	i     int
	depth int
	begun bool
}

// NewObject returns an Object for the one that b begins with.
func NewObject(b []byte) Object { return Object{b: b, depth: MaxDepth} }

// Rest returns what stands behind the object and the white space after it, once
// [Object.Next] has said done.
func (o *Object) Rest() []byte { return o.b[skipSpace(o.b, o.i):] }

// Next returns the next member: its key without quotes, its value as it stands.
// Both are slices of the input, unless the key has escapes. done is true behind
// the last member.
func (o *Object) Next() (key, val []byte, done bool, err error) {
	o.i = skipSpace(o.b, o.i)
	if !o.begun {
		if o.at() != '{' {
			return nil, nil, false, errObject
		}
		o.begun = true
		o.i = skipSpace(o.b, o.i+1)
		if o.at() == '}' {
			o.i++
			return nil, nil, true, nil
		}
	} else {
		switch o.at() {
		case '}':
			o.i++
			return nil, nil, true, nil
		case ',':
			o.i = skipSpace(o.b, o.i+1)
		default:
			return nil, nil, false, errJSON
		}
	}
	start := o.i
	if o.i, err = skipString(o.b, o.i); err != nil {
		return nil, nil, false, err
	}
	key = o.b[start+1 : o.i-1]
	if o.i = skipSpace(o.b, o.i); o.at() != ':' {
		return nil, nil, false, errJSON
	}
	start = skipSpace(o.b, o.i+1)
	if o.i, err = skipValue(o.b, start, o.depth-1); err != nil {
		return nil, nil, false, err
	}
	return unescape(key), o.b[start:o.i], false, nil
}

// at returns the byte at i, 0 behind the end.
func (o *Object) at() byte {
	if o.i < len(o.b) {
		return o.b[o.i]
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
		o := Object{b: b, i: i, depth: depth}
		for {
			if _, _, done, err := o.Next(); done || err != nil {
				return o.i, err
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

// JSONString returns what a JSON string stands for, without a copy unless it has
// escapes; ok is false if val is another kind of value.
func JSONString(val []byte) (s []byte, ok bool) {
	if len(val) < 2 || val[0] != '"' {
		return nil, false
	}
	return unescape(val[1 : len(val)-1]), true
}

// JSONUint returns what a JSON number stands for; ok is false if val is not a
// whole one below 2^64, without sign and exponent.
func JSONUint(val []byte) (n uint64, ok bool) {
	for _, c := range val {
		if c < '0' || c > '9' {
			return 0, false
		}
		d := uint64(c - '0')
		if n > (math.MaxUint64-d)/10 {
			return 0, false
		}
		n = n*10 + d
	}
	return n, len(val) > 0
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
