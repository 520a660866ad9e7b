// Package api asks a server over HTTP: to publish a message to all, to push to
// single users, many at a time, and for its metrics.
//
// A [Volley] is a load of its own, of pushes that are due. Their payloads are
// those that the generator's connections look for, and each has a number, so
// that what its receipt says can be held against what came.
//
// It does not know the connections, nor what is measured of them.
package api
