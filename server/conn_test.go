package server

import (
	"encoding/base64"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/quick"
	"time"
	"unsafe"
)

// What a connection needs of time and state is in its slot (docs/faults.md E10).
func TestSlotIsOneCacheLine(t *testing.T) {
	if n := unsafe.Sizeof(conn{}); n != 64 {
		t.Errorf("a slot has %d bytes", n)
	}
}

// A connection id cannot be made up, nor written in two ways (docs/faults.md A9).
func TestIDs(t *testing.T) {
	id := newIDs()
	roundTrip := func(r uint64, prefix []byte) bool {
		b := id.append(prefix[:len(prefix):len(prefix)], ref(r))
		text, ok := strings.CutPrefix(string(b), string(prefix))
		back, good := id.parse(text)
		return ok && good && back == ref(r) && len(text) == idLength
	}
	if err := quick.Check(roundTrip, nil); err != nil {
		t.Error(err)
	}
	valid := string(id.append(nil, 42))
	other := newIDs()
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
	rng := rand.New(rand.NewPCG(1, 2))
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

func TestRef(t *testing.T) {
	for _, c := range []conn{{fd: 0, gen: 0}, {fd: 1, gen: 1<<32 - 1}, {fd: 1<<31 - 1, gen: 7}} {
		if r := c.ref(); r.fd() != int(c.fd) || r.gen() != c.gen {
			t.Errorf("%v becomes %d, %d", c, r.fd(), r.gen())
		}
	}
}

// Every descriptor belongs to one shard, where it has an index of its own,
// and a shard's indexes are dense.
func TestShardOf(t *testing.T) {
	for _, shards := range []int{1, 2, 3, 8, 13, 4096} {
		n := 4 * blockSize * shards
		seen := map[[2]int]bool{}
		for fd := range n {
			s, local := shardOf(fd, shards), localIndex(fd, shards)
			if seen[[2]int{s, local}] || s >= shards || local >= n/shards || fdOf(local, s, shards) != fd {
				t.Fatalf("descriptor %d of %d shards is %d in shard %d", fd, shards, local, s)
			}
			seen[[2]int{s, local}] = true
		}
	}
}

func TestStampWraps(t *testing.T) {
	const wrap = 1 << 32 * stampUnit
	srv := &Server{}
	for _, start := range []time.Duration{0, time.Hour, wrap - stampUnit, wrap - time.Hour, 3*wrap - 1} {
		for _, d := range []time.Duration{0, stampUnit, time.Second, maxTimeout, 200 * 24 * time.Hour} {
			at := func(now time.Duration) stamp {
				srv.lastTick.Store(&tickTime{now, now})
				return srv.stampAt(now)
			}
			a, b := at(start), at(start+d)
			if got := b.since(a); got < d-stampUnit || got > d+stampUnit {
				t.Errorf("%s after %s is %s", d, start, got)
			}
			if got := a.since(b); got > -d+stampUnit || got < -d-stampUnit {
				t.Errorf("%s before %s is %s", d, start, got)
			}
		}
	}
}

// fdOf undoes shardOf and localIndex.
func fdOf(local, shard, shards int) int {
	return (local/blockSize*shards+shard)*blockSize + local%blockSize
}
