// Package usage has the error of a command line that cannot be obeyed. It
// knows no flag: whoever reads one says what is wrong with it.
package usage

import "fmt"

// Error says that what was asked for cannot be, whatever the server does. The
// program ends with status 2 then, not 1.
type Error struct{ error }

// Errorf returns an [Error]. Its text names the flag and what that allows.
func Errorf(format string, args ...any) error { return Error{fmt.Errorf(format, args...)} }
