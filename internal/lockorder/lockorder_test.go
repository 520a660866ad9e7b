//go:build lockorder

package lockorder

import "testing"

// panics reports whether f does.
func panics(f func()) (did bool) {
	defer func() { did = recover() != nil }()
	f()
	return false
}

func TestOrderIsAsserted(t *testing.T) {
	var stripe, other Mutex[Stripe]
	var inbox Mutex[Inbox]
	stripe.Lock()
	inbox.Lock()
	if !panics(stripe.Lock) || !panics(other.Lock) {
		t.Error("an earlier lock, or one of the same place, was taken under a later one")
	}
	inbox.Unlock()
	if !panics(other.Lock) {
		t.Error("two locks of one place were taken together")
	}
	done := make(chan bool)
	go func() { // has none
		other.Lock()
		other.Unlock()
		done <- true
	}()
	<-done
	inbox.Lock()
	inbox.Unlock()
	stripe.Unlock()
	other.Lock()
	other.Unlock()
}
