package server

import "context"

// simShutdown has some worlds shut their server down while everything goes on, and
// some of those lose their patience.
func simShutdown(w *world) feature {
	if w.Rng.IntN(4) > 0 {
		return feature{}
	}
	var stopping *caller
	return feature{events: []happening{
		{"the server is shut down", 1, func() bool {
			if w.stopping || w.step < simLength/2 {
				return false
			}
			stopping = w.shutdown()
			return true
		}},
		{"the patience of who shuts it down ends", 2, func() bool {
			if stopping == nil || stopping.done {
				return false
			}
			w.hasty = true
			stopping.cancel()
			return true
		}},
	}}
}

// shutdown begins a Shutdown. Of several all return when everything has ended,
// with the error of the first.
func (w *world) shutdown() *caller {
	w.stopping = true
	return w.call("a shutdown", func(ctx context.Context) func() {
		err := w.srv.Shutdown(ctx)
		return func() {
			if err != nil && !w.hasty {
				w.fail("Shutdown: %v", err)
			}
			w.ended()
		}
	})
}
