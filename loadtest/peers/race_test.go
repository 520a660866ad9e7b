//go:build race

package main

func init() { delete(peers, "nbio") } // its pollers race with its listeners by design, see its //go:norace
