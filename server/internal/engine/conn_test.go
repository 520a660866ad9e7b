package engine

import (
	"math/rand/v2"
	"testing"
	"time"
	"unsafe"
)

// What a connection needs of time and state is in its slot (docs/faults.md E10).
func TestSlotSize(t *testing.T) {
	if n := unsafe.Sizeof(Conn{}); n != 24 {
		t.Errorf("a slot has %d bytes", n)
	}
}

func TestRef(t *testing.T) {
	for _, c := range []Conn{{fd: 0, gen: 1}, {fd: 1, gen: 1<<32 - 1}, {fd: 1<<31 - 1, gen: 7}} {
		if r := c.Ref(); r.fd() != int(c.fd) || r.gen() != c.gen {
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
	e := &Engine{}
	for _, start := range []time.Duration{0, time.Hour, wrap - stampUnit, wrap - time.Hour, 3*wrap - 1} {
		for _, d := range []time.Duration{0, stampUnit, time.Second, maxTimeout, 200 * 24 * time.Hour} {
			at := func(now time.Duration) stamp {
				e.lastTick.Store(&tickTime{now, now})
				return e.stampAt(now)
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

// docs/faults.md X7, K2: however ticks, stops and turns follow each other, the
// engine's clock does not go back, and one stop moves it by stallAfter at most.
func TestServerClockStandsStillDuringAStop(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	e := &Engine{}
	now := time.Hour
	e.lastTick.Store(&tickTime{kernel: now})
	last, lastNow := e.stampAt(now), now
	stops := 0
	for range 10_000 {
		d := time.Duration(rng.Int64N(int64(sweepEvery)))
		if rng.IntN(10) == 0 { // stopped
			d = time.Duration(rng.Int64N(int64(time.Hour)))
			stops++
		}
		now += d
		if rng.IntN(2) == 0 {
			e.passTick(now)
		}
		stamp := e.stampAt(now)
		if moved := stamp.since(last); moved < 0 || moved > min(now-lastNow, stallAfter)+stampUnit {
			t.Fatalf("in %s the clock moved by %s", now-lastNow, moved)
		}
		last, lastNow = stamp, now
	}
	if stops == 0 {
		t.Error("never stopped")
	}
	// A turn that read the time, was stopped, and comes behind the ticker.
	e.passTick(now + time.Hour)
	if moved := e.stampAt(now).since(last); moved < 0 || moved > stallAfter {
		t.Errorf("an old time moves the clock by %s", moved)
	}
}

func TestOutboxAllocatesNothing(t *testing.T) {
	o := outbox{q: make([]entry, 0, 4)}
	p := &Parcel{frames: [maxCodecs][]byte{make([]byte, 100)}}
	buf := make([]byte, 0, 150)
	if n := testing.AllocsPerRun(100, func() {
		for range 3 {
			o.push(entry{b: p.frames[0], parcel: p}, 0)
		}
		whole := 0
		for !o.empty() {
			whole += o.sent(len(o.fill(buf)), 1)
		}
		if whole != 3 || o.bytes != 0 {
			t.Fatal("the outbox is not empty")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
