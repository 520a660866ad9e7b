//go:build lockorder

package lockorder

import (
	"bytes"
	"fmt"
	"runtime"
	"sync"
)

// Mutex is a [sync.Mutex] with a place in the order. It panics when a goroutine
// takes it that has one with the same place or a later one.
type Mutex[P Place] struct{ mu sync.Mutex }

// Lock locks m.
func (m *Mutex[P]) Lock() {
	var p P
	take(p.place())
	m.mu.Lock()
}

// Unlock unlocks m. The goroutine that locked it calls it.
func (m *Mutex[P]) Unlock() {
	m.mu.Unlock()
	var p P
	give(p.place())
}

// held are the places of the locks that each goroutine has, by its id.
var held sync.Map

// goroutine returns the id of the running goroutine, which only its stack trace
// tells: "goroutine 7 [running]:".
func goroutine() string {
	var buf [64]byte
	id, _, _ := bytes.Cut(bytes.TrimPrefix(buf[:runtime.Stack(buf[:], false)], []byte("goroutine ")), []byte(" "))
	return string(id)
}

func take(place int) {
	id := goroutine()
	var has []int
	if h, ok := held.Load(id); ok {
		has = h.([]int)
	}
	for _, p := range has {
		if p >= place {
			panic(fmt.Sprintf("lockorder: a lock of place %d is taken under one of place %d, see docs/design.md", place, p))
		}
	}
	held.Store(id, append(has[:len(has):len(has)], place))
}

func give(place int) {
	id := goroutine()
	h, _ := held.Load(id)
	has, _ := h.([]int)
	for i := len(has) - 1; i >= 0; i-- {
		if has[i] == place {
			has = append(has[:i:i], has[i+1:]...)
			break
		}
	}
	if len(has) == 0 {
		held.Delete(id)
		return
	}
	held.Store(id, has)
}
