//go:build linux

package generator

// dialQueue is a heap of connections by when they are due.
type dialQueue []int32

// push adds connection i, which is due at its time.
func (q *dialQueue) push(conns []conn, i int) {
	*q = append(*q, int32(i))
	for at := len(*q) - 1; at > 0; {
		parent := (at - 1) / 2
		if conns[(*q)[parent]].at <= conns[(*q)[at]].at {
			return
		}
		(*q)[parent], (*q)[at] = (*q)[at], (*q)[parent]
		at = parent
	}
}

// pop takes out the connection that is due first.
func (q *dialQueue) pop(conns []conn) int {
	h := *q
	first, last := h[0], len(h)-1
	h[0] = h[last]
	h = h[:last]
	for at := 0; ; {
		child := 2*at + 1
		if child >= last {
			break
		}
		if child+1 < last && conns[h[child+1]].at < conns[h[child]].at {
			child++
		}
		if conns[h[at]].at <= conns[h[child]].at {
			break
		}
		h[at], h[child] = h[child], h[at]
		at = child
	}
	*q = h
	return int(first)
}

// clear gives up what waits, and returns how many that were.
func (q *dialQueue) clear(conns []conn) (given int) {
	for _, i := range *q {
		conns[i].state = idle
	}
	given = len(*q)
	*q = (*q)[:0]
	return given
}
