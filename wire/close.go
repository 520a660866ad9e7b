package wire

import "strconv"

// CloseCode is the status of a Close frame, RFC 6455 section 7.4, and in
// 3000–3999 Tocsin's own: 3000–3499 mean come back, 3500–3999 stay away.
type CloseCode uint16

// The close codes that Tocsin gives a meaning. docs/protocol.md says which of
// them a server sends by itself; the others come from backends, embedding
// programs or proxies. Those from 3000 are the ones that users of Centrifugo
// know.
const (
	CloseNormal        CloseCode = 1000
	CloseGoingAway     CloseCode = 1001
	CloseProtocolError CloseCode = 1002 // a frame that breaks RFC 6455
	CloseUnsupported   CloseCode = 1003 // binary where text is spoken
	CloseInvalidData   CloseCode = 1007 // text that is not UTF-8
	ClosePolicy        CloseCode = 1008 // control flood, too many fragments, half a message for too long
	CloseTooBig        CloseCode = 1009 // a message over the limit
	CloseInternal      CloseCode = 1011 // a hook panicked
	CloseRestart       CloseCode = 1012
	CloseTryLater      CloseCode = 1013

	CloseShutdown          CloseCode = 3001
	CloseExpired           CloseCode = 3005
	CloseSlow              CloseCode = 3008 // the outbox was full, or nothing left it for too long
	CloseInsufficientState CloseCode = 3010
	CloseForceReconnect    CloseCode = 3011
	CloseNoPong            CloseCode = 3012
	CloseTooManyRequests   CloseCode = 3013

	CloseInvalidToken     CloseCode = 3500
	CloseBadRequest       CloseCode = 3501
	CloseStale            CloseCode = 3502 // authentication took too long
	CloseForceDisconnect  CloseCode = 3503
	CloseConnectionLimit  CloseCode = 3504
	ClosePermissionDenied CloseCode = 3507
)

var closeReasons = map[CloseCode]string{
	CloseNormal:        "normal closure",
	CloseGoingAway:     "going away",
	CloseProtocolError: "protocol error",
	CloseUnsupported:   "unsupported data",
	CloseInvalidData:   "invalid payload data",
	ClosePolicy:        "policy violation",
	CloseTooBig:        "message too big",
	CloseInternal:      "internal error",
	CloseRestart:       "service restart",
	CloseTryLater:      "try again later",

	CloseShutdown:          "shutdown",
	CloseExpired:           "expired",
	CloseSlow:              "slow",
	CloseInsufficientState: "insufficient state",
	CloseForceReconnect:    "force reconnect",
	CloseNoPong:            "no pong",
	CloseTooManyRequests:   "too many requests",

	CloseInvalidToken:     "invalid token",
	CloseBadRequest:       "bad request",
	CloseStale:            "stale",
	CloseForceDisconnect:  "force disconnect",
	CloseConnectionLimit:  "connection limit",
	ClosePermissionDenied: "permission denied",
}

// String returns the code's words, or its number when it has none.
func (c CloseCode) String() string {
	if s, ok := closeReasons[c]; ok {
		return s
	}
	return strconv.Itoa(int(c))
}

// ComeBack reports whether a client that was closed with c should connect
// again: the transport's own 1001, 1006, 1011–1013 and 3000–3499.
func (c CloseCode) ComeBack() bool {
	switch c {
	case CloseGoingAway, 1006, CloseInternal, CloseRestart, CloseTryLater:
		return true
	}
	return c >= 3000 && c < 3500
}

// ForApps reports whether c is for applications to close with: 1000 and
// 3000–4999. The others tell what happened to the transport, RFC 6455
// section 7.4.
func (c CloseCode) ForApps() bool { return c == CloseNormal || c >= 3000 && c <= 4999 }

// ValidReceived reports whether a peer may send c in a Close frame,
// RFC 6455 sections 7.4.1 and 7.4.2 with the IANA registry's 1012–1014.
func (c CloseCode) ValidReceived() bool {
	switch {
	case c < 1000, c == 1004, c == 1005, c == 1006, c == 1015:
		return false
	case c <= 1014:
		return true
	}
	return c >= 3000 && c <= 4999
}
