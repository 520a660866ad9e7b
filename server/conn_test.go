package server

import (
	"crypto/rand"
	"encoding/base64"
	mathrand "math/rand/v2"
	"strings"
	"testing"
	"testing/quick"

	"github.com/tocsin-push/tocsin/server/internal/engine"
)

// A connection id cannot be made up, nor written in two ways (docs/faults.md A9).
func TestIDs(t *testing.T) {
	id := newIDs(func(b []byte) { rand.Read(b) })
	roundTrip := func(r uint64, prefix []byte) bool {
		b := id.append(prefix[:len(prefix):len(prefix)], engine.Ref(r))
		text, ok := strings.CutPrefix(string(b), string(prefix))
		back, good := id.parse(text)
		return ok && good && back == engine.Ref(r) && len(text) == idLength
	}
	if err := quick.Check(roundTrip, nil); err != nil {
		t.Error(err)
	}
	valid := string(id.append(nil, 42))
	other := newIDs(func(b []byte) { rand.Read(b) })
	for _, bad := range []string{
		"", "x", valid[1:], valid + "A", valid + "==", valid[:21] + "!", valid[:21] + "\n", strings.Repeat("é", 11),
		string(other.append(nil, 42)), // of another process
	} {
		if r, ok := id.parse(bad); ok {
			t.Errorf("%q is taken for %v", bad, r)
		}
	}
	// The last character carries two bits of nothing; other spellings of the
	// same bytes are refused.
	for _, c := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_" {
		if s := valid[:21] + string(c); s != valid {
			if _, ok := id.parse(s); ok {
				t.Errorf("%q is taken as well as %q", s, valid)
			}
		}
	}
	rng := mathrand.New(mathrand.NewPCG(1, 2))
	for range 100_000 {
		var b [16]byte
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		if r, ok := id.parse(base64.RawURLEncoding.EncodeToString(b[:])); ok {
			t.Fatalf("a made-up id is taken for %v", r)
		}
	}
}
