// Package tocsin is Tocsin's own protocol, subprotocol tocsin.v1: JSON text
// frames over RFC 6455, one object a frame. [Codec] is a server's half of it;
// [AppendCommand] and [ParseEvent] are a client's.
//
// The flow, C for client and S for server:
//
//	C: GET /ws?topics=news HTTP/1.1 …          the upgrade, RFC 6455 section 4
//	S: 101, and in the same write:
//	   {"welcome":{"conn":"…","user":"42","ping":25,"topics":{"news":{"seq":16,"epoch":"x"}}}}
//	C: {"id":1,"subscribe":{"topic":"sport"}}
//	S: {"id":1,"ok":{"topic":"sport","seq":3,"epoch":"x"}}
//	S: {"topic":"news","seq":17,"id":"…","data":…}
//	C: {"id":2,"ack":{"id":"…"}}               when the message said "ack":true
//	S: {"id":2,"ok":{}}
//	S: {"goodbye":{"code":3001,"reason":"shutdown","retry_after_ms":8125}}
//	S: Close 3001
//
// The commands are these. Every one is answered, by ok or by error, with the id
// it came with.
//
//	{"id":1,"subscribe":{"topic":"news","after":16,"epoch":"x"}}
//	{"id":1,"unsubscribe":{"topic":"news"}}
//	{"id":1,"publish":{"topic":"news","data":…,"id":"…"}}
//	{"id":1,"ack":{"id":"…"}}
//	{"id":1,"ping":{}}
//
// Unknown fields are ignored; an unknown command gets an error and the
// connection lives. The whole of it is told in docs/protocol.md.
package tocsin

// Subprotocol is the name in Sec-WebSocket-Protocol. A client that offers no
// subprotocol is spoken to in the same way.
const Subprotocol = "tocsin.v1"
