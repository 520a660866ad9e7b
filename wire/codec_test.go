package wire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/gobwas/ws"
)

func TestParseCommand(t *testing.T) {
	long := strings.Repeat("x", 128)
	for _, c := range []struct {
		in   string
		want Command
	}{
		{`{"id":1,"subscribe":{"topic":"news"}}`, Command{Verb: Subscribe, ID: []byte("1"), Topic: []byte("news")}},
		{
			`{"id":1,"subscribe":{"topic":"news","after":16,"epoch":"x"}}`,
			Command{Verb: Subscribe, ID: []byte("1"), Topic: []byte("news"), After: 16, HasAfter: true, Epoch: []byte("x")},
		},
		{`{"subscribe":{"topic":"n","after":0}}`, Command{Verb: Subscribe, Topic: []byte("n"), HasAfter: true}},
		{
			`{"subscribe":{"topic":"n","after":9999999999999999999}}`,
			Command{Verb: Subscribe, Topic: []byte("n"), After: 9999999999999999999, HasAfter: true},
		},
		{`{"unsubscribe":{"topic":"news"},"id":"a-1"}`, Command{Verb: Unsubscribe, ID: []byte(`"a-1"`), Topic: []byte("news")}},
		{
			"{\"id\":-2.5e1,\"publish\":{\"topic\":\"news\",\"data\": {\"a\" : [1]} ,\"id\":\"m\"}}\n",
			Command{Verb: Publish, ID: []byte("-2.5e1"), Topic: []byte("news"), Data: []byte(`{"a" : [1]}`), MessageID: []byte("m")},
		},
		{`{"publish":{"topic":"t","data":null}}`, Command{Verb: Publish, Topic: []byte("t"), Data: []byte("null")}},
		{`{"ack":{"id":"` + long + `"}}`, Command{Verb: Ack, MessageID: []byte(long)}},
		{` { "ping" : { } } `, Command{Verb: Ping}},
		{`{"ping":{},"unknown":{"deep":[[]]},"id":7}`, Command{Verb: Ping, ID: []byte("7")}},
		{`{"ping":{"topic":"$ not checked","more":0}}`, Command{Verb: Ping, Topic: []byte("$ not checked")}},

		// Escapes, in keys too.
		{`{"\u0069d":1,"subscr\u0069be":{"top\u0069c":"n\u00e9\ud83d\udd14"}}`, Command{Verb: Subscribe, ID: []byte("1"), Topic: []byte("né🔔")}},
		{`{"id":"\u0031","ping":{}}`, Command{Verb: Ping, ID: []byte(`"\u0031"`)}},

		// The last of several fields counts, as in encoding/json.
		{`{"id":1,"id":2,"ping":{}}`, Command{Verb: Ping, ID: []byte("2")}},
		{`{"subscribe":{"topic":"a","topic":"b"}}`, Command{Verb: Subscribe, Topic: []byte("b")}},

		// Keys are case-sensitive, unlike in encoding/json.
		{`{"ID":"x","ping":{},"Subscribe":{"topic":"a"}}`, Command{Verb: Ping}},
	} {
		var got Command
		if err := ParseCommand([]byte(c.in), &got); err != nil {
			t.Errorf("ParseCommand(%s): %v", c.in, err)
		} else if !reflect.DeepEqual(got, c.want) {
			t.Errorf("ParseCommand(%s)\n got %s\nwant %s", c.in, show(got), show(c.want))
		}
		sameCommand(t, []byte(c.in))
	}
}

func TestParseCommandErrors(t *testing.T) {
	for _, c := range []struct {
		in   string
		code ErrorCode
		id   string // what the reply repeats
	}{
		{``, BadRequest, ""},
		{`null`, BadRequest, ""},
		{`[]`, BadRequest, ""},
		{`"ping"`, BadRequest, ""},
		{`{`, BadRequest, ""},
		{`{"id":1,"ping":{}`, BadRequest, "1"},
		{`{"id":1,"ping":{}}x`, BadRequest, "1"},
		{`{"id":1,"ping":{}}{}`, BadRequest, "1"},
		{`{"id":1,"ping":{},}`, BadRequest, "1"},
		{`{id:1}`, BadRequest, ""},
		{`{"id":1,"ping":{"a":` + nested(31, "[", "", "]") + `}}`, BadRequest, "1"},

		{`{"id":null,"ping":{}}`, BadRequest, ""},
		{`{"id":true,"ping":{}}`, BadRequest, ""},
		{`{"id":{},"ping":{}}`, BadRequest, ""},
		{`{"id":[1],"ping":{}}`, BadRequest, ""},
		{`{"id":"` + strings.Repeat("x", 63) + `","ping":{}}`, BadRequest, ""},

		{`{}`, UnknownCommand, ""},
		{`{"id":1}`, UnknownCommand, "1"},
		{`{"id":1,"shout":{}}`, UnknownCommand, "1"},
		{`{"id":1,"Ping":{}}`, UnknownCommand, "1"},

		{`{"id":1,"ping":{},"subscribe":{"topic":"a"}}`, BadRequest, "1"},
		{`{"id":1,"ping":{},"ping":{}}`, BadRequest, "1"},
		{`{"id":1,"ping":null}`, BadRequest, "1"},
		{`{"ping":[],"id":1}`, BadRequest, "1"},
		{`{"id":1,"subscribe":"news"}`, BadRequest, "1"},
		{`{"id":1,"subscribe":{"topic":1}}`, BadRequest, "1"},
		{`{"id":1,"subscribe":{"topic":null}}`, BadRequest, "1"},
		{`{"id":1,"subscribe":{"topic":"a","after":"1"}}`, BadRequest, "1"},
		{`{"id":1,"subscribe":{"topic":"a","after":-1}}`, BadRequest, "1"},
		{`{"id":1,"subscribe":{"topic":"a","after":1.0}}`, BadRequest, "1"},
		{`{"id":1,"subscribe":{"topic":"a","after":1e3}}`, BadRequest, "1"},
		{`{"id":1,"subscribe":{"topic":"a","after":18446744073709551616}}`, BadRequest, "1"},
		{`{"id":1,"subscribe":{"topic":"a","epoch":1}}`, BadRequest, "1"},
		{`{"id":1,"publish":{"topic":"a"}}`, BadRequest, "1"},
		{`{"id":1,"publish":{"topic":"a","data":1,"id":2}}`, BadRequest, "1"},
		{`{"id":1,"publish":{"topic":"a","data":1,"id":"` + strings.Repeat("x", 129) + `"}}`, BadRequest, "1"},
		{`{"id":1,"ack":{}}`, BadRequest, "1"},
		{`{"id":1,"ack":{"id":""}}`, BadRequest, "1"},

		{`{"id":1,"subscribe":{}}`, BadTopic, "1"},
		{`{"id":1,"subscribe":{"topic":""}}`, BadTopic, "1"},
		{`{"id":1,"subscribe":{"topic":"$user"}}`, BadTopic, "1"},
		{`{"id":1,"unsubscribe":{"topic":"a b"}}`, BadTopic, "1"},
		{`{"id":1,"publish":{"topic":"\u0000","data":1}}`, BadTopic, "1"},
		{`{"id":1,"subscribe":{"topic":"` + strings.Repeat("x", 256) + `"}}`, BadTopic, "1"},
	} {
		var got Command
		err := ParseCommand([]byte(c.in), &got)
		switch {
		case err == nil:
			t.Errorf("ParseCommand(%.200s) = %s, want %s", c.in, show(got), c.code)
		case err.Code != c.code || err.Message == "" || string(got.ID) != c.id:
			t.Errorf("ParseCommand(%.200s): id %q, %v, want id %q, %s", c.in, got.ID, err, c.id, c.code)
		}
		sameCommand(t, []byte(c.in))
	}
	if err := ParseCommand([]byte(`[1]`), new(Command)); err == nil || err.Message != "not a JSON object" {
		t.Errorf("ParseCommand([1]): %v", err)
	}
}

// show prints a command with its slices as text.
func show(c Command) string {
	return fmt.Sprintf("{%s id %q topic %q epoch %q data %q message id %q after %d %v}",
		c.Verb, c.ID, c.Topic, c.Epoch, c.Data, c.MessageID, c.After, c.HasAfter)
}

// member is one member of a JSON object, as encoding/json sees it.
type member struct {
	key string
	val json.RawMessage
}

func members(b []byte) (list []member, ok bool) {
	dec := json.NewDecoder(bytes.NewReader(b))
	if open, err := dec.Token(); err != nil || open != json.Delim('{') {
		return nil, false
	}
	for dec.More() {
		var m member
		key, err := dec.Token()
		if err != nil || dec.Decode(&m.val) != nil {
			return nil, false
		}
		m.key = key.(string)
		list = append(list, m)
	}
	return list, true
}

// modelCommand is ParseCommand over encoding/json: the last of several fields
// counts, null is not a string, keys are case-sensitive, a second command is
// an error even when it is the same one.
func modelCommand(b []byte) (c Command, code ErrorCode) {
	list, ok := members(b)
	if !ok || !json.Valid(b) || jsonDepth(b) > MaxDepth {
		return c, BadRequest
	}
	var body []byte
	for _, m := range list {
		switch m.key {
		case "id":
			if !strings.ContainsAny(string(m.val[:1]), `"-0123456789`) || len(m.val) > 64 {
				return c, BadRequest
			}
			c.ID = m.val
		case "subscribe", "unsubscribe", "publish", "ack", "ping":
			if c.Verb != None {
				return c, BadRequest
			}
			c.Verb = map[string]Verb{"subscribe": Subscribe, "unsubscribe": Unsubscribe, "publish": Publish, "ack": Ack, "ping": Ping}[m.key]
			body = m.val
		}
	}
	if c.Verb == None {
		return c, UnknownCommand
	}
	list, ok = members(body)
	if !ok {
		return c, BadRequest
	}
	for _, m := range list {
		if !modelField(&c, m) {
			return c, BadRequest
		}
	}
	needsTopic := c.Verb == Subscribe || c.Verb == Unsubscribe || c.Verb == Publish
	switch {
	case c.Verb == Publish && c.Data == nil, c.Verb == Ack && len(c.MessageID) == 0:
		return c, BadRequest
	case needsTopic && CheckTopic(c.Topic) != nil:
		return c, BadTopic
	}
	return c, ""
}

func modelField(c *Command, m member) bool {
	var s string
	err := json.Unmarshal(m.val, &s)
	isString := err == nil && m.val[0] == '"'
	switch m.key {
	case "topic":
		c.Topic = []byte(s)
		return isString
	case "epoch":
		c.Epoch = []byte(s)
		return isString
	case "id":
		c.MessageID = []byte(s)
		return isString && len(s) <= MaxID
	case "after":
		c.After, err = strconv.ParseUint(string(m.val), 10, 64)
		c.HasAfter = true
		return err == nil && len(m.val) <= 19
	case "data":
		c.Data = m.val
	}
	return true
}

// sameCommand wants ParseCommand to agree with the model.
func sameCommand(t *testing.T, b []byte) {
	t.Helper()
	var got Command
	err := ParseCommand(b, &got)
	if !utf8.Valid(b) {
		return // the frame reader has refused it; here it only must not panic
	}
	want, code := modelCommand(b)
	switch {
	case err == nil && code != "":
		t.Fatalf("ParseCommand(%q) = %s, the model says %s", b, show(got), code)
	case err != nil && err.Code != code:
		t.Fatalf("ParseCommand(%q): %v, the model says %q", b, err, code)
	case err != nil && code != BadRequest && !bytes.Equal(got.ID, want.ID):
		t.Fatalf("ParseCommand(%q) leaves id %q, want %q", b, got.ID, want.ID)
	case err != nil:
		return
	}
	// bytes.Equal, because an empty field may be nil or not.
	for _, f := range []struct {
		name      string
		got, want []byte
	}{
		{"id", got.ID, want.ID},
		{"topic", got.Topic, want.Topic},
		{"epoch", got.Epoch, want.Epoch},
		{"data", got.Data, want.Data},
		{"message id", got.MessageID, want.MessageID},
	} {
		if !bytes.Equal(f.got, f.want) {
			t.Fatalf("ParseCommand(%q): %s is %q, the model says %q", b, f.name, f.got, f.want)
		}
	}
	if got.Verb != want.Verb || got.After != want.After || got.HasAfter != want.HasAfter {
		t.Fatalf("ParseCommand(%q) = %s, the model says %s", b, show(got), show(want))
	}
}

func FuzzClientJSON(f *testing.F) {
	for _, s := range []string{
		`{"id":1,"subscribe":{"topic":"news","after":16,"epoch":"x"}}`,
		`{"id":"a","unsubscribe":{"topic":"news"}}`,
		`{"id":1,"publish":{"topic":"news","data":{"a":[1,2.5e3,null,"\u00e9"]},"id":"m"}}`,
		`{"ack":{"id":"m"},"id":-1}`,
		`{"ping":{}}`,
		`{"ping":{},"ping":{}}`,
		`{"id":1,"id":2,"subscribe":{"topic":"a","topic":"b","after":1,"after":2}}`,
		`{"\u0069d":1,"subscr\u0069be":{"top\u0069c":"\ud83d\udd14","epoch":"\ud800"}}`,
		`{"subscribe":{"topic":null,"after":-1}}`,
		`{"subscribe":{"topic":"$user"}}`,
		`{"id":18446744073709551616,"subscribe":{"topic":"a","after":18446744073709551615}}`,
		`{"publish":{"topic":"a","data":` + nested(30, "[", "", "]") + `}}`,
		`{"publish":{"topic":"a","data":` + nested(31, "[", "", "]") + `}}`,
		`{"unknown":1}`, `{}`, `[]`, `{"id":1,`, "\xff", `{"ping":{}} {}`, `{"ID":1,"Ping":{}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(sameCommand)
}

// awkward are strings that an encoder gets wrong when it is careless.
var awkward = []string{"news", `"quoted\"`, "é🔔", "a\nb\x00", "\u2028", "</script>", "\ufffd"}

func TestReplies(t *testing.T) {
	yes, no := true, false
	id := []byte("7")
	for _, s := range awkward {
		at := Position{Seq: 1<<64 - 1, Epoch: s}
		for _, c := range []struct {
			b    []byte
			want Event
		}{
			{AppendOK(nil, id), Event{ID: 7, OK: &OK{}}},
			{AppendOK(nil, nil), Event{OK: &OK{}}},
			{AppendSubscribed(nil, id, s, at, nil), Event{ID: 7, OK: &OK{Topic: s, Seq: at.Seq, Epoch: s}}},
			{AppendSubscribed(nil, nil, []byte(s), at, &yes), Event{OK: &OK{Topic: s, Seq: at.Seq, Epoch: s, Recovered: &yes}}},
			{AppendSubscribed(nil, id, s, Position{}, &no), Event{ID: 7, OK: &OK{Topic: s, Recovered: &no}}},
			{AppendPublished(nil, id, s, at), Event{ID: 7, OK: &OK{MessageID: s, Seq: at.Seq, Epoch: s}}},
			{AppendError(nil, id, &Error{Forbidden, s}), Event{ID: 7, Error: &Error{Forbidden, s}}},
			{AppendError(nil, nil, &Error{BadRequest, s}), Event{Error: &Error{BadRequest, s}}},
		} {
			wantEvent(t, c.b, c.want)
		}
	}
	if b := AppendPublished(nil, id, "m1", Position{}); string(b) != `{"id":7,"ok":{"id":"m1"}}` {
		t.Errorf("AppendPublished to a topic without a numbering: %s", b)
	}
	// The id of a reply stands as the client wrote it.
	if b := AppendOK(nil, []byte(`"a\u0031"`)); string(b) != `{"id":"a\u0031","ok":{}}` {
		t.Errorf("AppendOK: %s", b)
	}
}

func TestNotices(t *testing.T) {
	for _, s := range awkward {
		at := Position{Seq: 16, Epoch: s}
		goodbye := Goodbye{Code: CloseShutdown, Reason: s, RetryAfterMS: 8125}
		gap := Gap{Topic: s, Epoch: s, From: 3, To: 1<<64 - 1, Reason: s}
		cancel := Cancel{Topic: s, Reason: s}
		for _, c := range []struct {
			b    []byte
			want Event
		}{
			{AppendWelcome(nil, []byte("c1"), "", 0, nil, nil), Event{Welcome: &Welcome{Conn: "c1"}}},
			{AppendWelcome(nil, []byte("c1"), s, 25, nil, nil), Event{Welcome: &Welcome{Conn: "c1", User: s, Ping: 25}}},
			{
				AppendWelcome(nil, []byte("c1"), s, 25, []string{"a", s + "2"}, []Position{{}, at}),
				Event{Welcome: &Welcome{Conn: "c1", User: s, Ping: 25, Topics: map[string]Position{"a": {}, s + "2": at}}},
			},
			{AppendGoodbye(nil, goodbye), Event{Goodbye: &goodbye}},
			{AppendGap(nil, gap), Event{Gap: &gap}},
			{AppendCancel(nil, cancel), Event{Cancel: &cancel}},
		} {
			wantEvent(t, c.b, c.want)
		}
	}
}

func TestMessages(t *testing.T) {
	for _, s := range awkward {
		for _, m := range []Message{
			{Topic: s, Data: []byte(`null`)},
			{Topic: s, Seq: 17, ID: s, Data: []byte(`{"topic":"inner","welcome":{},"id":1}`)},
			{Topic: UserTopic, ID: s, Ack: true, Data: []byte(`[1, 2]`)},
			{Topic: UserTopic, ID: s, Urgency: "very-low", Ack: true, Data: []byte(`[1, 2]`)},
			{Topic: AllTopic, Urgency: s, Data: []byte(`{"urgency":"inner"}`)},
			{Topic: AllTopic, Seq: 1<<64 - 1, Data: []byte(`"` + strings.Repeat("é", 1000) + `"`)},
		} {
			wantEvent(t, AppendMessage(nil, &m), Event{Message: &m})
		}
	}
}

// A message without urgency is not a byte longer than it was.
func TestMessageOnTheWire(t *testing.T) {
	for want, m := range map[string]Message{
		`{"topic":"a","data":1}`:                                                {Topic: "a", Data: []byte("1")},
		`{"topic":"a","seq":7,"id":"m","data":1}`:                               {Topic: "a", Seq: 7, ID: "m", Data: []byte("1")},
		`{"topic":"$user","id":"m","urgency":"high","ack":true,"data":{"a":1}}`: {Topic: UserTopic, ID: "m", Urgency: "high", Ack: true, Data: []byte(`{"a":1}`)},
	} {
		if got := string(AppendMessage(nil, &m)); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// wantEvent wants b to be one JSON object in UTF-8 that reads as want.
func wantEvent(t *testing.T, b []byte, want Event) {
	t.Helper()
	if !json.Valid(b) || !utf8.Valid(b) || b[0] != '{' {
		t.Errorf("not a JSON object: %q", b)
	}
	if err := CheckJSON(b); err != nil {
		t.Errorf("%v: %q", err, b)
	}
	got, err := ParseEvent(b)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("ParseEvent(%s)\n got %s, %v\nwant %s", b, dump(got), err, dump(want))
	}
}

func dump(e Event) string {
	b, _ := json.Marshal(struct {
		Event
		Message *Message
	}{e, e.Message})
	return string(b)
}

func TestParseEventErrors(t *testing.T) {
	for _, s := range []string{``, `{`, `[]`, `"x"`, `{"id":{}}`, `{"id":-1,"ok":{}}`, `{"topic":1}`, `{"topic":"a","id":1}`, `{"topic":"a","urgency":1}`, `{"ok":[]}`} {
		if e, err := ParseEvent([]byte(s)); err == nil {
			t.Errorf("ParseEvent(%s) = %s, want an error", s, dump(e))
		}
	}
	// Nothing in an event points into the frame, whose buffer is used again.
	b := []byte(`{"topic":"news","data":[1,2,3]}`)
	e, err := ParseEvent(b)
	if err != nil {
		t.Fatal(err)
	}
	clear(b)
	if e.Message.Topic != "news" || string(e.Message.Data) != "[1,2,3]" {
		t.Errorf("the event changed with its buffer: %s", dump(e))
	}
	// What a later server adds is ignored.
	if e, err := ParseEvent([]byte(`{"later":{"a":1}}`)); err != nil || !reflect.DeepEqual(e, Event{}) {
		t.Errorf("an unknown notice reads as %s, %v", dump(e), err)
	}
}

func TestZeroAllocations(t *testing.T) {
	var (
		c       Command
		sink    error
		hdr     ws.Header
		dst     = make([]byte, 0, 4096)
		topic   = strings.Repeat("long/topic-", 20)
		command = []byte(`{"id":12,"subscribe":{"topic":"` + topic + `","after":16,"epoch":"é"}}`)
		publish = []byte(`{"id":"x","publish":{"topic":"` + topic + `","data":{"a":[1,2.5e3,"\u00e9"]},"id":"m"}}`)
		reply   = Position{Seq: 7, Epoch: "x"}
		message = Message{Topic: topic, Seq: 17, ID: "m\n", Urgency: "high", Ack: true, Data: []byte(`{"a":1}`)}
		frame   = AppendMasked(nil, ws.OpText, true, [4]byte{1, 2, 3, 4}, publish)
	)
	for _, f := range []struct {
		name string
		run  func()
	}{
		{"ParseCommand subscribe", func() {
			if err := ParseCommand(command, &c); err != nil {
				sink = err
			}
		}},
		{"ParseCommand publish", func() {
			if err := ParseCommand(publish, &c); err != nil {
				sink = err
			}
		}},
		{"CheckJSON", func() { sink = CheckJSON(publish) }},
		{"AppendMessage", func() { dst = AppendMessage(dst[:0], &message) }},
		{"AppendOK", func() { dst = AppendOK(dst[:0], c.ID) }},
		{"AppendSubscribed", func() { dst = AppendSubscribed(dst[:0], c.ID, c.Topic, reply, nil) }},
		{"AppendPublished", func() { dst = AppendPublished(dst[:0], c.ID, topic, reply) }},
		{"AppendFrame", func() { dst = AppendFrame(dst[:0], ws.OpText, publish) }},
		{"AppendMasked", func() { dst = AppendMasked(dst[:0], ws.OpText, true, [4]byte{1, 2, 3, 4}, publish) }},
		{"AppendClose", func() { dst = AppendClose(dst[:0], CloseShutdown, "shutdown") }},
		{"ParseHeader", func() { hdr, _ = ParseHeader(frame) }},
	} {
		if n := testing.AllocsPerRun(100, f.run); n != 0 || sink != nil {
			t.Errorf("%s: %v allocations, want 0 (%v)", f.name, n, sink)
		}
	}
	if hdr.Length != int64(len(publish)) || len(dst) == 0 {
		t.Errorf("nothing was done: %+v", hdr)
	}
}
