package httpapi

import (
	"encoding/json"
	"errors"
	"reflect"
	"testing"

	"github.com/tocsin-push/tocsin/server"
	"github.com/tocsin-push/tocsin/wire"
)

// FuzzPublishBody: a body is refused with 400, or its data arrives byte for
// byte as encoding/json finds it, its address is one, and reading the body
// again without spaces gives the same.
func FuzzPublishBody(f *testing.F) {
	for _, seed := range []string{
		`{"topic":"news","data":{"hi":1}}`, `{"user":"42","data":"x","wait":"ack","timeout_ms":5}`, `{"conn":"c","data":null}`,
		`{"data":[1,2.5e3,true],"rate":7,"id":"m","ttl":60,"urgency":"low","collapse_key":"c","idempotency_key":"k"}`,
		`{"user":"a","code":3500,"reason":"no"}`, `{"topic":"a","topic":"b","data":1}`, `{"topic":"\ud800","data":1}`, "{\"data\":\"\xc0\"}", `[[[[`, ``,
	} {
		for _, on := range []routes{onPublish, onPush, onBroadcast, onDisconnect, onItem} {
			f.Add([]byte(seed), uint8(on))
		}
	}
	f.Fuzz(func(t *testing.T, body []byte, route uint8) {
		on := routes(1) << (route % 5)
		q, err := parse(body, on)
		if err != nil {
			if p, ok := errors.AsType[*problem](err); !ok || p.code != codeBadRequest || p.detail == "" {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		var reference map[string]json.RawMessage
		if err := json.Unmarshal(body, &reference); err != nil {
			t.Fatalf("accepted what is not an object: %v", err)
		}
		if string(reference["data"]) != string(q.message.Data) {
			t.Fatalf("data is %q, want %q", q.message.Data, reference["data"])
		}
		if on != onDisconnect && wire.CheckJSON(q.message.Data) != nil {
			t.Fatalf("data %q is not JSON", q.message.Data)
		}
		wantAddress(t, q, on)
		compact, err := json.Marshal(reference)
		if err != nil {
			t.Fatal(err)
		}
		again, err := parse(compact, on)
		if err != nil {
			t.Fatalf("%s was accepted, %s is not: %v", body, compact, err)
		}
		again.message.Data, q.message.Data = nil, nil // Marshal compacts it
		if !reflect.DeepEqual(q, again) {
			t.Fatalf("%+v, read again %+v", q, again)
		}
	})
}

func wantAddress(t *testing.T, q *request, on routes) {
	t.Helper()
	one := (q.to.User == "") != (q.to.Conn == "")
	switch on {
	case onPublish:
		if wire.CheckTopic(q.topic) != nil || q.to != (server.Target{}) {
			t.Fatalf("published to %q %+v", q.topic, q.to)
		}
	case onItem:
		if q.checkAddress(onItem) != nil {
			t.Fatalf("sent to %q %+v %q", q.topic, q.to, q.users)
		}
	case onBroadcast:
		if q.topic != "" || q.to != (server.Target{}) {
			t.Fatalf("broadcast to %q %+v", q.topic, q.to)
		}
	default:
		if !one || q.topic != "" || q.to.User != "" && wire.CheckUser(q.to.User) != nil {
			t.Fatalf("sent to %q %+v", q.topic, q.to)
		}
	}
}
