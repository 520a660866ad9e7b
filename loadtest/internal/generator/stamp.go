//go:build linux

package generator

import (
	"math/rand/v2"
	"strconv"
)

// MinPayload is what a payload needs: the stamp, in JSON.
const MinPayload = 80

// MaxPushes bounds the numbers of a round of pushes, which come back from the
// server.
const MaxPushes = 1 << 30

// NewRun returns a name for a run that no other has.
func NewRun() string { return strconv.FormatUint(rand.Uint64()>>24, 36) }

// AppendMessage appends size bytes of JSON, at least [MinPayload], that
// [Fleet.Arm] has the connections expect: message seq of a run, from 1, sent at
// that time of machine.Now.
func AppendMessage(dst []byte, size int, run string, seq int, sent int64) []byte {
	return appendPayload(dst, size, run, seq, sent)
}

// AppendPush appends size bytes of JSON, at least [MinPayload], that
// [Fleet.ExpectPushes] has connection to expect: push n of a round, from 1, due
// at that time of machine.Now.
func AppendPush(dst []byte, size int, run string, n, to int, due int64) []byte {
	return appendPayload(dst, size, run, n, int64(to), due)
}

// appendPayload appends size bytes of JSON with a stamp.
func appendPayload(dst []byte, size int, run string, number int, more ...int64) []byte {
	end := len(dst) + size
	dst = appendStamp(append(dst, `{"loadtest":"`...), run, number, more...)
	dst = append(dst, `","pad":"`...)
	for len(dst) < end-2 {
		dst = append(dst, '.')
	}
	return append(dst, `"}`...)
}

// appendStamp appends what a payload of a run holds, anywhere, and so that JSON
// has nothing to escape in it: ~run.number.nanoseconds~, the time when it was
// sent; for a push ~run.number.connection.nanoseconds~, the connection that it
// is for and the time when it was due.
func appendStamp(dst []byte, run string, number int, more ...int64) []byte {
	dst = append(append(append(dst, '~'), run...), '.')
	dst = strconv.AppendInt(dst, int64(number), 10)
	for _, n := range more {
		dst = strconv.AppendInt(append(dst, '.'), n, 10)
	}
	return append(dst, '~')
}

// number reads digits and skips what ends them.
func number(b []byte) (n int64, rest []byte) {
	for k, c := range b {
		if c < '0' || c > '9' {
			return n, b[k+1:]
		}
		n = n*10 + int64(c-'0')
	}
	return n, nil
}
