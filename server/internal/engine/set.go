package engine

import (
	"math/bits"
	"slices"
)

// members is a set of local indexes as most of them are: one member, or many.
// The zero value is empty.
type members struct {
	more *fdset // nil for at most one member
	one  uint32 // the member, if there is one and more is nil
	n    uint32
}

func (m *members) len() int { return int(m.n) }

func (m *members) has(i int) bool {
	if m.more != nil {
		return m.more.has(i)
	}
	return m.n == 1 && m.one == uint32(i)
}

// add puts i in and reports whether it was not there.
func (m *members) add(i int) bool {
	switch {
	case m.n == 0:
		m.one = uint32(i)
	case m.more == nil && m.one == uint32(i):
		return false
	default:
		if m.more == nil {
			m.more = &fdset{}
			m.more.add(int(m.one))
		}
		if !m.more.add(i) {
			return false
		}
	}
	m.n++
	return true
}

// remove takes i out and reports whether it was there.
func (m *members) remove(i int) bool {
	if !m.has(i) {
		return false
	}
	if m.n--; m.more != nil {
		m.more.remove(i)
		if m.n == 0 {
			m.more = nil
		}
	}
	return true
}

// next returns the smallest member that is at least i, or -1.
func (m *members) next(i int) int {
	if m.more != nil {
		return m.more.next(i)
	}
	if m.n == 1 && int(m.one) >= i {
		return int(m.one)
	}
	return -1
}

// fdset is a set of local indexes, walked in ascending order. Small ones are a
// sorted list; one whose list would be larger than a bitmap becomes a bitmap.
// The zero value is an empty set.
type fdset struct {
	words []uint32 // the members, sorted; or, when dense, a bitmap
	n     int32
	dense bool
}

func (s *fdset) has(i int) bool {
	if s.dense {
		return i>>5 < len(s.words) && s.words[i>>5]>>(i&31)&1 != 0
	}
	_, ok := slices.BinarySearch(s.words, uint32(i))
	return ok
}

// add puts i in and reports whether it was not there.
func (s *fdset) add(i int) bool {
	if s.dense {
		if w := i >> 5; w >= len(s.words) {
			s.words = append(s.words, make([]uint32, w+1-len(s.words))...)
		}
		if s.words[i>>5]>>(i&31)&1 != 0 {
			return false
		}
		s.words[i>>5] |= 1 << (i & 31)
		s.n++
		s.thin()
		return true
	}
	at, ok := slices.BinarySearch(s.words, uint32(i))
	if ok {
		return false
	}
	if s.words == nil {
		s.words = make([]uint32, 0, 1)
	}
	s.words = slices.Insert(s.words, at, uint32(i))
	s.n++
	if top := s.words[len(s.words)-1]; s.n > 8 && uint32(s.n) > top>>5 {
		s.toBitmap(int(top))
	}
	return true
}

func (s *fdset) toBitmap(top int) {
	list := s.words
	s.words, s.dense = make([]uint32, top>>5+1), true
	for _, i := range list {
		s.words[i>>5] |= 1 << (i & 31)
	}
}

// remove takes i out and reports whether it was there.
func (s *fdset) remove(i int) bool {
	if !s.has(i) {
		return false
	}
	s.n--
	switch {
	case s.n == 0:
		*s = fdset{}
	case s.dense:
		s.words[i>>5] &^= 1 << (i & 31)
		s.thin()
	default:
		at, _ := slices.BinarySearch(s.words, uint32(i))
		s.words = slices.Delete(s.words, at, at+1)
	}
	return true
}

// thin makes a bitmap a list again when that is much smaller.
func (s *fdset) thin() {
	if len(s.words) <= 64 || 8*int(s.n) >= len(s.words) {
		return
	}
	list := make([]uint32, 0, s.n)
	for i := s.next(0); i >= 0; i = s.next(i + 1) {
		list = append(list, uint32(i))
	}
	s.words, s.dense = list, false
}

// next returns the smallest member that is at least i, or -1.
func (s *fdset) next(i int) int {
	if !s.dense {
		if at, _ := slices.BinarySearch(s.words, uint32(i)); at < len(s.words) {
			return int(s.words[at])
		}
		return -1
	}
	for w := i >> 5; w < len(s.words); w++ {
		word := s.words[w]
		if w == i>>5 {
			word &= ^uint32(0) << (i & 31)
		}
		if word != 0 {
			return w<<5 + bits.TrailingZeros32(word)
		}
	}
	return -1
}
