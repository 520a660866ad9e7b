package engine

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// setModel drives an fdset, the members on top of one, and a map with the same
// commands.
type setModel struct {
	t       *testing.T
	set     fdset
	members members
	model   map[int]bool
}

func newSetModel(t *testing.T) *setModel { return &setModel{t: t, model: map[int]bool{}} }

func (m *setModel) add(i int) {
	if a, b := m.set.add(i), m.members.add(i); a == m.model[i] || b == m.model[i] {
		m.t.Fatalf("add(%d) is %v and %v", i, a, b)
	}
	m.model[i] = true
}

func (m *setModel) remove(i int) {
	if a, b := m.set.remove(i), m.members.remove(i); a != m.model[i] || b != m.model[i] {
		m.t.Fatalf("remove(%d) is %v and %v", i, a, b)
	}
	delete(m.model, i)
}

// check compares everything and bounds the memory: no more than a list and no
// more than a bitmap need, in each case with room to change one's mind.
func (m *setModel) check(top int) {
	m.t.Helper()
	var want, got, members []int
	for i := range m.model {
		want = append(want, i)
	}
	slices.Sort(want)
	for i := m.set.next(0); i >= 0; i = m.set.next(i + 1) {
		got = append(got, i)
	}
	for i := m.members.next(0); i >= 0; i = m.members.next(i + 1) {
		members = append(members, i)
	}
	if !slices.Equal(members, want) || m.members.len() != len(want) || len(want) == 0 && m.members.more != nil {
		m.t.Fatalf("the members are %v, want %v", members, want)
	}
	if !slices.Equal(got, want) || int(m.set.n) != len(want) {
		m.t.Fatalf("the set of %d is %v, want %v", int(m.set.n), got, want)
	}
	for _, i := range []int{0, 1, top / 2, top, top + 1, 2 * top} {
		if m.set.has(i) != m.model[i] || m.members.has(i) != m.model[i] {
			m.t.Fatalf("has(%d) is %v", i, m.set.has(i))
		}
	}
	if most := max(64, min(len(want), top/32+2)*8); len(m.set.words) > most {
		m.t.Fatalf("%d words for %d members up to %d", len(m.set.words), len(want), top)
	}
	if len(want) == 0 && m.set.words != nil {
		m.t.Fatal("an empty set keeps memory")
	}
}

func FuzzFDSet(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("\x00\x01\x80\x01\x00\x01"))
	dense, sparse := []byte{}, []byte{}
	for i := range 200 {
		dense = append(dense, 0, byte(i))
		sparse = append(sparse, byte(i)&0x7f, 7)
	}
	for i := range 190 {
		dense = append(dense, 0x80, byte(i))
	}
	f.Add(dense)
	f.Add(sparse)
	f.Fuzz(func(t *testing.T, commands []byte) {
		m := newSetModel(t)
		top := 0
		for ; len(commands) > 1; commands = commands[2:] {
			i := int(commands[0]&0x7f)<<8 | int(commands[1])
			if commands[0] < 0x80 {
				top = max(top, i)
				m.add(i)
			} else {
				m.remove(i)
			}
		}
		m.check(top)
	})
}

func TestFDSet(t *testing.T) {
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 0))
		m := newSetModel(t)
		top := 1 + rng.IntN(5000)
		for round := range 6 {
			for range rng.IntN(2 * top) {
				if i := rng.IntN(top); rng.IntN(6) > round {
					m.add(i)
				} else {
					m.remove(i)
				}
			}
			m.check(top)
		}
		for i := range top {
			m.remove(i)
		}
		m.check(top)
	}
}
