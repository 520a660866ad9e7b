package wire

// What the tests of the reader look at. They are a package of their own, because
// internal/wstest imports this one.

// UTF8Tail is utf8Tail.
type UTF8Tail struct{ utf8Tail }

// Write is write.
func (u *UTF8Tail) Write(p []byte) bool { return u.write(p) }

// Whole reports whether no rune is unfinished.
func (u *UTF8Tail) Whole() bool { return u.n == 0 }

// Kept returns how many bytes r holds of what is unfinished.
func Kept(r *Reader) (message, control, header int) {
	return len(r.message), len(r.control), int(r.have)
}

// Buffers returns the size of the buffers of r.
func Buffers(r *Reader) (message, control int) { return cap(r.message), cap(r.control) }
