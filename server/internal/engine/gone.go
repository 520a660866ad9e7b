package engine

// signal has Shutdown look again whether everything has ended.
func (d *drain) signal() {
	select {
	case d.empty <- struct{}{}:
	default:
	}
}

// gone counts the end of a connection's descriptor.
func (e *Engine) gone() {
	if e.conns.Add(-1) == 0 {
		e.drain.signal()
	}
}
