// Package e2e tests the tocsin binary from outside, with WebSocket clients
// that nobody here wrote: headless Chromium, ws from npm and Debian's
// python3-websockets. `make e2e` installs the npm packages and runs it; its
// tests have the build tag e2e.
package e2e
