package tocsin_test

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/wire"
	"github.com/tocsin-push/tocsin/wire/tocsin"
)

// codec is the one under test, called as a server does: through the interface.
var codec wire.Codec = tocsin.Codec{}

// awkward are strings that an encoder gets wrong when it is careless.
var awkward = []string{"news", `"quoted\"`, "é🔔", "a\nb\x00", "\u2028", "</script>", "\ufffd"}

func TestReplies(t *testing.T) {
	yes, no := true, false
	id := []byte("7")
	for _, s := range awkward {
		at := wire.Position{Seq: 1<<64 - 1, Epoch: s}
		for _, c := range []struct {
			r    wire.Reply
			want wire.Event
		}{
			{wire.Reply{Verb: wire.Ping, ID: id}, wire.Event{ID: 7, OK: &wire.OK{}}},
			{wire.Reply{Verb: wire.Ping}, wire.Event{OK: &wire.OK{}}},
			{wire.Reply{Verb: wire.Unsubscribe, ID: id, Topic: s}, wire.Event{ID: 7, OK: &wire.OK{}}},
			{wire.Reply{Verb: wire.Ack, ID: id, MessageID: s}, wire.Event{ID: 7, OK: &wire.OK{}}},
			{wire.Reply{Verb: wire.Subscribe, ID: id, Topic: s, At: at}, wire.Event{ID: 7, OK: &wire.OK{Topic: s, Seq: at.Seq, Epoch: s}}},
			{wire.Reply{Verb: wire.Subscribe, Topic: s, At: at, Recovered: wire.Recovered}, wire.Event{OK: &wire.OK{Topic: s, Seq: at.Seq, Epoch: s, Recovered: &yes}}},
			{wire.Reply{Verb: wire.Subscribe, ID: id, Topic: s, Recovered: wire.NotRecovered}, wire.Event{ID: 7, OK: &wire.OK{Topic: s, Recovered: &no}}},
			{wire.Reply{Verb: wire.Publish, ID: id, Topic: "t", MessageID: s, At: at}, wire.Event{ID: 7, OK: &wire.OK{MessageID: s, Seq: at.Seq, Epoch: s}}},
			{wire.Reply{Verb: wire.Subscribe, ID: id, Topic: s, Err: wire.Error{Code: wire.Forbidden, Message: s}}, wire.Event{ID: 7, Error: &wire.Error{Code: wire.Forbidden, Message: s}}},
			{wire.Reply{Err: wire.Error{Code: wire.BadRequest, Message: s}}, wire.Event{Error: &wire.Error{Code: wire.BadRequest, Message: s}}},
		} {
			wantEvent(t, codec.AppendReply(nil, c.r), c.want)
		}
	}
	if b := codec.AppendReply(nil, wire.Reply{Verb: wire.Publish, ID: id, MessageID: "m1"}); string(b) != `{"id":7,"ok":{"id":"m1"}}` {
		t.Errorf("a publish to a topic without a numbering: %s", b)
	}
	// The id of a reply stands as the client wrote it.
	if b := codec.AppendReply(nil, wire.Reply{Verb: wire.Ping, ID: []byte(`"a\u0031"`)}); string(b) != `{"id":"a\u0031","ok":{}}` {
		t.Errorf("a ping: %s", b)
	}
}

func TestNotices(t *testing.T) {
	for _, s := range awkward {
		at := wire.Position{Seq: 16, Epoch: s}
		goodbye := wire.Goodbye{Code: wire.CloseShutdown, Reason: s, RetryAfterMS: 8125}
		gap := wire.Gap{Topic: s, Epoch: s, From: 3, To: 1<<64 - 1, Reason: s}
		cancel := wire.Cancel{Topic: s, Reason: s}
		for _, c := range []struct {
			b    []byte
			want wire.Event
		}{
			{codec.AppendWelcome(nil, wire.Greeting{Conn: []byte("c1")}), wire.Event{Welcome: &wire.Welcome{Conn: "c1"}}},
			{codec.AppendWelcome(nil, wire.Greeting{Conn: []byte("c1"), User: s, Ping: 25}), wire.Event{Welcome: &wire.Welcome{Conn: "c1", User: s, Ping: 25}}},
			{
				codec.AppendWelcome(nil, wire.Greeting{Conn: []byte("c1"), User: s, Ping: 25, Topics: []string{"a", s + "2"}, At: []wire.Position{{}, at}}),
				wire.Event{Welcome: &wire.Welcome{Conn: "c1", User: s, Ping: 25, Topics: map[string]wire.Position{"a": {}, s + "2": at}}},
			},
			{codec.AppendGoodbye(nil, goodbye), wire.Event{Goodbye: &goodbye}},
			{codec.AppendGap(nil, gap), wire.Event{Gap: &gap}},
			{codec.AppendMissed(nil, gap), wire.Event{Gap: &gap}},
			{codec.AppendCancel(nil, cancel), wire.Event{Cancel: &cancel}},
			{codec.AppendSubscribed(nil, s, at), wire.Event{OK: &wire.OK{Topic: s, Seq: 16, Epoch: s}}},
		} {
			wantEvent(t, c.b, c.want)
		}
	}
}

func TestMessages(t *testing.T) {
	for _, s := range awkward {
		for _, m := range []wire.Message{
			{Topic: s, Data: []byte(`null`)},
			{Topic: s, Seq: 17, ID: s, Data: []byte(`{"topic":"inner","welcome":{},"id":1}`)},
			{Topic: wire.UserTopic, ID: s, Ack: true, Data: []byte(`[1, 2]`)},
			{Topic: wire.UserTopic, ID: s, Urgency: "very-low", Ack: true, Data: []byte(`[1, 2]`)},
			{Topic: wire.AllTopic, Urgency: s, Data: []byte(`{"urgency":"inner"}`)},
			{Topic: wire.AllTopic, Seq: 1<<64 - 1, Data: []byte(`"` + strings.Repeat("é", 1000) + `"`)},
		} {
			wantEvent(t, codec.AppendMessage(nil, m), wire.Event{Message: &m})
		}
	}
}

// A message without urgency is not a byte longer than it was.
func TestMessageOnTheWire(t *testing.T) {
	for want, m := range map[string]wire.Message{
		`{"topic":"a","data":1}`:                                                {Topic: "a", Data: []byte("1")},
		`{"topic":"a","seq":7,"id":"m","data":1}`:                               {Topic: "a", Seq: 7, ID: "m", Data: []byte("1")},
		`{"topic":"$user","id":"m","urgency":"high","ack":true,"data":{"a":1}}`: {Topic: wire.UserTopic, ID: "m", Urgency: "high", Ack: true, Data: []byte(`{"a":1}`)},
	} {
		if got := string(codec.AppendMessage(nil, m)); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// wantEvent wants b to be one JSON object in UTF-8 that reads as want.
func wantEvent(t *testing.T, b []byte, want wire.Event) {
	t.Helper()
	if !json.Valid(b) || !utf8.Valid(b) || b[0] != '{' {
		t.Errorf("not a JSON object: %q", b)
	}
	if err := wire.CheckJSON(b); err != nil {
		t.Errorf("%v: %q", err, b)
	}
	got, err := tocsin.ParseEvent(b)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("ParseEvent(%s)\n got %s, %v\nwant %s", b, dump(got), err, dump(want))
	}
}

func dump(e wire.Event) string {
	b, _ := json.Marshal(struct {
		wire.Event
		Message *wire.Message
	}{e, e.Message})
	return string(b)
}

func TestParseEventErrors(t *testing.T) {
	for _, s := range []string{``, `{`, `[]`, `"x"`, `{"id":{}}`, `{"id":-1,"ok":{}}`, `{"topic":1}`, `{"topic":"a","id":1}`, `{"topic":"a","urgency":1}`, `{"ok":[]}`} {
		if e, err := tocsin.ParseEvent([]byte(s)); err == nil {
			t.Errorf("ParseEvent(%s) = %s, want an error", s, dump(e))
		}
	}
	// Nothing in an event points into the frame, whose buffer is used again.
	b := []byte(`{"topic":"news","data":[1,2,3]}`)
	e, err := tocsin.ParseEvent(b)
	if err != nil {
		t.Fatal(err)
	}
	clear(b)
	if e.Message.Topic != "news" || string(e.Message.Data) != "[1,2,3]" {
		t.Errorf("the event changed with its buffer: %s", dump(e))
	}
	// What a later server adds is ignored.
	if e, err := tocsin.ParseEvent([]byte(`{"later":{"a":1}}`)); err != nil || !reflect.DeepEqual(e, wire.Event{}) {
		t.Errorf("an unknown notice reads as %s, %v", dump(e), err)
	}
}

// A raw connection gets bare data, and an answer to whatever it asks.
func TestRaw(t *testing.T) {
	var raw wire.Codec = tocsin.Raw{}
	for what, b := range map[string][]byte{
		"welcome": raw.AppendWelcome([]byte("x"), wire.Greeting{Conn: []byte("c1"), Topics: []string{"a"}, At: make([]wire.Position, 1)}),
		"gap":     raw.AppendGap([]byte("x"), wire.Gap{Topic: "a"}),
		"cancel":  raw.AppendCancel([]byte("x"), wire.Cancel{Topic: "a"}),
		"ok":      raw.AppendSubscribed([]byte("x"), "a", wire.Position{Seq: 1}),
		"goodbye": raw.AppendGoodbye([]byte("x"), wire.Goodbye{Code: wire.CloseShutdown}),
	} {
		if string(b) != "x" {
			t.Errorf("the %s is %s", what, b)
		}
	}
	if raw.TellsGaps() || !codec.TellsGaps() {
		t.Errorf("TellsGaps is %v for raw and %v for the other", raw.TellsGaps(), codec.TellsGaps())
	}
	m := wire.Message{Topic: "a", Seq: 7, ID: "m", Data: []byte(` {"a": 1} `)}
	if b := raw.AppendMessage([]byte("x"), m); string(b) != `x {"a": 1} ` {
		t.Errorf("the message is %s", b)
	}
	for _, b := range []string{`{"id":1,"subscribe":{"topic":"a","after":1}}`, `{"id":2}`} {
		got, rest, err := raw.Parse([]byte(b))
		want, _, wantErr := codec.Parse([]byte(b))
		if show(got) != show(want) || rest != nil || !reflect.DeepEqual(err, wantErr) {
			t.Errorf("%s is read as %s, %v, want %s, %v", b, show(got), err, show(want), wantErr)
		}
	}
	r := wire.Reply{ID: []byte("1"), Verb: wire.Subscribe, Topic: "a", Recovered: wire.NotRecovered}
	if got, want := raw.AppendReply(nil, r), codec.AppendReply(nil, r); !bytes.Equal(got, want) {
		t.Errorf("the reply is %s, want %s", got, want)
	}
	gap := wire.Gap{Topic: "a", From: 1, To: 2}
	if got, want := raw.AppendMissed(nil, gap), codec.AppendMissed(nil, gap); !bytes.Equal(got, want) {
		t.Errorf("what was missed is %s, want %s", got, want)
	}
}

// What the two say of themselves is the same.
func TestNames(t *testing.T) {
	for _, c := range []wire.Codec{tocsin.Codec{}, tocsin.Raw{}} {
		if c.Subprotocol() != "tocsin.v1" || c.Op() != ws.OpText {
			t.Errorf("%T is %q with opcode %d", c, c.Subprotocol(), c.Op())
		}
		if op, payload := c.Ping(); op != ws.OpPing || len(payload) > 0 {
			t.Errorf("the ping of %T has opcode %d and %q", c, op, payload)
		}
		for code := range wire.CloseCode(5000) {
			if c.CloseCode(code) != code {
				t.Errorf("%T calls %d %d", c, code, c.CloseCode(code))
			}
		}
	}
}

func TestZeroAllocations(t *testing.T) {
	var (
		dst     = make([]byte, 0, 4096)
		topic   = strings.Repeat("long/topic-", 20)
		command = []byte(`{"id":12,"subscribe":{"topic":"` + topic + `","after":16,"epoch":"é"}}`)
		publish = []byte(`{"id":"x","publish":{"topic":"` + topic + `","data":{"a":[1,2.5e3,"\u00e9"]},"id":"m"}}`)
		id      = []byte("7")
		at      = wire.Position{Seq: 7, Epoch: "x"}
		message = wire.Message{Topic: topic, Seq: 17, ID: "m\n", Urgency: "high", Ack: true, Data: []byte(`{"a":1}`)}
		topics  = []string{topic}
		places  = []wire.Position{at}
	)
	parse := func(c wire.Codec, b []byte) {
		if cmd, _, err := c.Parse(b); err != nil || len(cmd.Topic) != len(topic) {
			t.Fatalf("%v, topic %q", err, cmd.Topic)
		}
	}
	for _, c := range []wire.Codec{tocsin.Codec{}, tocsin.Raw{}} {
		for name, run := range map[string]func(){
			"Parse subscribe": func() { parse(c, command) },
			"Parse publish":   func() { parse(c, publish) },
			"a ping's reply":  func() { dst = c.AppendReply(dst[:0], wire.Reply{ID: id, Verb: wire.Ping}) },
			"a subscribe's reply": func() {
				dst = c.AppendReply(dst[:0], wire.Reply{ID: id, Verb: wire.Subscribe, Topic: topic, At: at, Recovered: wire.Recovered})
			},
			"a publish's reply": func() {
				dst = c.AppendReply(dst[:0], wire.Reply{ID: id, Verb: wire.Publish, Topic: topic, MessageID: "m", At: at})
			},
			"an error": func() {
				dst = c.AppendReply(dst[:0], wire.Reply{ID: id, Verb: wire.Ack, Err: wire.Error{Code: wire.NotFound, Message: "nobody"}})
			},
			"AppendMissed": func() {
				dst = c.AppendMissed(dst[:0], wire.Gap{Topic: topic, Epoch: "x", From: 1, To: 2, Reason: "epoch"})
			},
			"AppendWelcome": func() {
				dst = c.AppendWelcome(dst[:0], wire.Greeting{Conn: id, User: "u", Ping: 25, Topics: topics, At: places})
			},
			"AppendMessage":    func() { dst = c.AppendMessage(dst[:0], message) },
			"AppendGap":        func() { dst = c.AppendGap(dst[:0], wire.Gap{Topic: topic, Epoch: "x", From: 1, To: 2, Reason: "ttl"}) },
			"AppendSubscribed": func() { dst = c.AppendSubscribed(dst[:0], topic, wire.Position{Seq: 1, Epoch: "x"}) },
			"AppendCancel":     func() { dst = c.AppendCancel(dst[:0], wire.Cancel{Topic: topic, Reason: "x"}) },
			"AppendGoodbye": func() {
				dst = c.AppendGoodbye(dst[:0], wire.Goodbye{Code: wire.CloseShutdown, Reason: wire.CloseShutdown.String(), RetryAfterMS: 1})
			},
			"Ping":          func() { c.Ping() },
			"AppendCommand": func() { dst = tocsin.AppendCommand(dst[:0], wire.Command{Verb: wire.Ping, ID: id}) },
		} {
			if n := testing.AllocsPerRun(100, run); n != 0 {
				t.Errorf("%T, %s: %v allocations, want 0", c, name, n)
			}
		}
	}
}

func BenchmarkCodec(b *testing.B) {
	subscribe := []byte(`{"id":12,"subscribe":{"topic":"news","after":16,"epoch":"x"}}`)
	b.Run("parse", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, _, err := codec.Parse(subscribe); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("reply", func(b *testing.B) {
		b.ReportAllocs()
		dst, id, at := make([]byte, 0, 256), []byte("12"), wire.Position{Seq: 17, Epoch: "x"}
		for b.Loop() {
			dst = codec.AppendReply(dst[:0], wire.Reply{ID: id, Verb: wire.Subscribe, Topic: "news", At: at})
		}
	})
}
