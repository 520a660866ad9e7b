package server

import (
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"sync"
	"testing"
)

var seed = maphash.MakeSeed()

func hashed(s string) uint64 { return maphash.String(seed, s) }

type entry struct{ name string }

func (e *entry) indexName() string { return e.name }

func TestIndexIsAMap(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 0))
		x, model := newIndex[*entry](hashed), map[string]*entry{}
		names := 1 + rng.IntN(2000)
		for range 10 * names {
			e := &entry{fmt.Sprint("user", rng.IntN(names))}
			st := x.stripe(e.name)
			at := st.find(e.name)
			switch {
			case (at != nil) != (model[e.name] != nil) || at != nil && *at != model[e.name]:
				t.Fatalf("%s is %v, want %v", e.name, at, model[e.name])
			case at == nil:
				st.insert(e)
				model[e.name] = e
			case rng.IntN(2) == 0:
				*at = e // as logout does when the first of a chain goes
				model[e.name] = e
			default:
				st.remove(e.name)
				delete(model, e.name)
			}
		}
		if x.len() != len(model) {
			t.Fatalf("%d entries, want %d", x.len(), len(model))
		}
		for name := range model {
			x.stripe(name).remove(name)
		}
		for i := range x.stripes {
			if x.len() != 0 || x.stripes[i].tab != nil {
				t.Fatal("an empty stripe keeps memory")
			}
		}
	}
}

func TestIndexConcurrently(t *testing.T) {
	x := newIndex[*entry](hashed)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			own := fmt.Sprint("own", g)
			for i := range 2000 {
				for _, name := range []string{own, "shared"} {
					st := x.stripe(name)
					st.mu.Lock()
					if at := st.find(name); at == nil {
						st.insert(&entry{name})
					} else if (*at).name != name {
						t.Errorf("found %s under %s", (*at).name, name)
					} else if i%3 == 0 {
						st.remove(name)
					}
					st.mu.Unlock()
				}
				x.len()
			}
		})
	}
	wg.Wait()
}
