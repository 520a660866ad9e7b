package server

// What the tests of both packages of this folder use.
var (
	Full       = full
	Size       = size
	Eventually = eventually
)
