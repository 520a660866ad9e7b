package wire

import (
	"errors"
	"unicode/utf8"
)

var (
	errObject = errors.New("not a JSON object")
	errArray  = errors.New("not a JSON array")
)

// Members calls yield for each member of the JSON object b: its key without
// quotes, its value as it stands. It stops at yield's first error and returns
// it; its own error says why b is not one object that [CheckJSON] accepts.
// Before it returns nil, what yield got may turn out to be part of something
// that is not JSON. Keys and values live as long as b.
func Members(b []byte, yield func(key, val []byte) error) error {
	o := NewObject(b)
	if start := skipSpace(b, 0); start == len(b) || b[start] != '{' {
		return whyNot(b, errObject)
	}
	for {
		key, val, done, err := o.Next()
		switch {
		case err != nil:
			return err
		case done:
			return checkEnd(b, o.i)
		}
		if err := yield(key, val); err != nil {
			return err
		}
	}
}

// Elements calls yield for each element of the JSON array b, under the rules
// of [Members]. Each element may have [MaxDepth] levels.
func Elements(b []byte, yield func(val []byte) error) error {
	start := skipSpace(b, 0)
	if start == len(b) || b[start] != '[' {
		return whyNot(b, errArray)
	}
	end, err := walkArray(b, start, MaxDepth, yield)
	if err != nil {
		return err
	}
	return checkEnd(b, end)
}

// whyNot returns err if b is JSON all the same.
func whyNot(b []byte, err error) error {
	if bad := CheckJSON(b); bad != nil {
		return bad
	}
	return err
}

// checkEnd wants nothing behind end, and all of b to be UTF-8.
func checkEnd(b []byte, end int) error {
	switch {
	case skipSpace(b, end) != len(b):
		return errJSON
	case !utf8.Valid(b):
		return errUTF8
	}
	return nil
}
