package engine

import "fmt"

// fatal ends the process loudly: without readiness nothing can be served, and
// a supervisor that restarts helps more than silence.
func (e *Engine) fatal(what string, err error) {
	e.cfg.Logger.Error(what+"; the process ends", "error", err)
	if e.cfg.OnFatal != nil {
		e.cfg.OnFatal(err)
		return
	}
	go panic(fmt.Sprintf("server: %s: %v", what, err))
}

func (e *Engine) pollerFailed(err error) {
	if !e.closed.Load() {
		e.fatal("epoll_wait failed", err)
	}
}
