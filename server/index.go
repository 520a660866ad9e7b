package server

import "github.com/tocsin-push/tocsin/internal/lockorder"

// index finds things by name: users' connections, topics. It is split in
// stripes, each with its own lock, and costs about 14 bytes an entry: a table
// of pointers whose names stand in what they point to, where a map would keep
// each name a second time.
type index[E named] struct {
	hash    func(string) uint64 // static; nobody can guess it
	stripes [64]stripe[E]
}

type named interface {
	comparable
	indexName() string
}

// stripe is one part of an index. The caller holds mu for all of it.
type stripe[E named] struct {
	mu   lockorder.Mutex[lockorder.Stripe]
	hash func(string) uint64
	tab  []E // open addressing, linear probing, at most three quarters full
	n    int
}

func newIndex[E named](hash func(string) uint64) *index[E] {
	x := &index[E]{hash: hash}
	for i := range x.stripes {
		x.stripes[i].hash = hash
	}
	return x
}

// stripe returns the stripe that name belongs to.
func (x *index[E]) stripe(name string) *stripe[E] {
	return &x.stripes[x.number(name)]
}

// number is which stripe name belongs to.
func (x *index[E]) number(name string) int { return int(x.hash(name) >> 58) }

// len counts all entries.
func (x *index[E]) len() (n int) {
	for i := range x.stripes {
		s := &x.stripes[i]
		s.mu.Lock()
		n += s.n
		s.mu.Unlock()
	}
	return n
}

// home is where an entry stands if nothing is in its way. The low half of the
// hash, as a fraction, is multiplied by the length, which so can be any number.
func (s *stripe[E]) home(name string) int {
	return int(uint64(uint32(s.hash(name))) * uint64(len(s.tab)) >> 32)
}

// after is the place behind i, in a circle.
func (s *stripe[E]) after(i int) int {
	if i++; i < len(s.tab) {
		return i
	}
	return 0
}

// from is how far i is behind start, in a circle.
func (s *stripe[E]) from(start, i int) int {
	if i >= start {
		return i - start
	}
	return i - start + len(s.tab)
}

// find returns the place of the entry with that name, or nil.
func (s *stripe[E]) find(name string) *E {
	if s.n == 0 {
		return nil
	}
	var none E
	for i := s.home(name); s.tab[i] != none; i = s.after(i) {
		if s.tab[i].indexName() == name {
			return &s.tab[i]
		}
	}
	return nil
}

// insert puts e in; no entry of that name may be there.
func (s *stripe[E]) insert(e E) {
	if (s.n+1)*4 > len(s.tab)*3 {
		old := s.tab
		s.tab = make([]E, max(4, len(old)+len(old)/2))
		var none E
		for _, e := range old {
			if e != none {
				s.place(e)
			}
		}
	}
	s.place(e)
	s.n++
}

func (s *stripe[E]) place(e E) {
	var none E
	i := s.home(e.indexName())
	for s.tab[i] != none {
		i = s.after(i)
	}
	s.tab[i] = e
}

// remove takes the entry with that name out and closes the hole behind it.
func (s *stripe[E]) remove(name string) {
	at := s.find(name)
	if at == nil {
		return
	}
	var none E
	hole := s.home(name)
	for &s.tab[hole] != at {
		hole = s.after(hole)
	}
	for i := s.after(hole); s.tab[i] != none; i = s.after(i) {
		// An entry may move back if the hole is not before its home.
		if s.from(s.home(s.tab[i].indexName()), i) >= s.from(hole, i) {
			s.tab[hole] = s.tab[i]
			hole = i
		}
	}
	s.tab[hole] = none
	if s.n--; s.n == 0 {
		s.tab = nil
	}
}
