// Package lockorder has mutexes with a place in an order: whoever holds one may
// take only those that come later. Built with the tag lockorder, a mutex panics
// when that is broken, even if nothing deadlocks; otherwise it is a sync.Mutex.
// docs/design.md says which lock has which place.
package lockorder

// Place is where a mutex stands in the order.
type Place interface{ place() int }

// The places, in their order.
type (
	// Outer is for locks that are taken first.
	Outer struct{}
	// Stripe is for a part of an index.
	Stripe struct{}
	// Table is for what is looked up by name or number.
	Table struct{}
	// Inbox is for what goroutines hand each other.
	Inbox struct{}
	// Leaf is for locks under which nothing is taken.
	Leaf struct{}
)

func (Outer) place() int  { return 1 }
func (Stripe) place() int { return 2 }
func (Table) place() int  { return 3 }
func (Inbox) place() int  { return 4 }
func (Leaf) place() int   { return 5 }
