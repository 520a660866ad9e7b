package tocsin_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/tocsin-push/tocsin/internal/wstest"
	"github.com/tocsin-push/tocsin/wire"
	"github.com/tocsin-push/tocsin/wire/tocsin"
)

func TestParse(t *testing.T) {
	long := strings.Repeat("x", 128)
	for _, c := range []struct {
		in   string
		want wire.Command
	}{
		{`{"id":1,"subscribe":{"topic":"news"}}`, wire.Command{Verb: wire.Subscribe, ID: []byte("1"), Topic: []byte("news")}},
		{
			`{"id":1,"subscribe":{"topic":"news","after":16,"epoch":"x"}}`,
			wire.Command{Verb: wire.Subscribe, ID: []byte("1"), Topic: []byte("news"), After: 16, HasAfter: true, Epoch: []byte("x")},
		},
		{`{"subscribe":{"topic":"n","after":0}}`, wire.Command{Verb: wire.Subscribe, Topic: []byte("n"), HasAfter: true}},
		{
			`{"subscribe":{"topic":"n","after":9999999999999999999}}`,
			wire.Command{Verb: wire.Subscribe, Topic: []byte("n"), After: 9999999999999999999, HasAfter: true},
		},
		{
			`{"subscribe":{"topic":"n","after":18446744073709551615}}`,
			wire.Command{Verb: wire.Subscribe, Topic: []byte("n"), After: 18446744073709551615, HasAfter: true},
		},
		{`{"unsubscribe":{"topic":"news"},"id":"a-1"}`, wire.Command{Verb: wire.Unsubscribe, ID: []byte(`"a-1"`), Topic: []byte("news")}},
		{
			"{\"id\":-2.5e1,\"publish\":{\"topic\":\"news\",\"data\": {\"a\" : [1]} ,\"id\":\"m\"}}\n",
			wire.Command{Verb: wire.Publish, ID: []byte("-2.5e1"), Topic: []byte("news"), Data: []byte(`{"a" : [1]}`), MessageID: []byte("m")},
		},
		{`{"publish":{"topic":"t","data":null}}`, wire.Command{Verb: wire.Publish, Topic: []byte("t"), Data: []byte("null")}},
		{`{"ack":{"id":"` + long + `"}}`, wire.Command{Verb: wire.Ack, MessageID: []byte(long)}},
		{` { "ping" : { } } `, wire.Command{Verb: wire.Ping}},
		{`{"ping":{},"unknown":{"deep":[[]]},"id":7}`, wire.Command{Verb: wire.Ping, ID: []byte("7")}},
		{`{"ping":{"topic":"$ not checked","more":0}}`, wire.Command{Verb: wire.Ping, Topic: []byte("$ not checked")}},

		// Escapes, in keys too.
		{`{"\u0069d":1,"subscr\u0069be":{"top\u0069c":"n\u00e9\ud83d\udd14"}}`, wire.Command{Verb: wire.Subscribe, ID: []byte("1"), Topic: []byte("né🔔")}},
		{`{"id":"\u0031","ping":{}}`, wire.Command{Verb: wire.Ping, ID: []byte(`"\u0031"`)}},

		// The last of several fields counts, as in encoding/json.
		{`{"id":1,"id":2,"ping":{}}`, wire.Command{Verb: wire.Ping, ID: []byte("2")}},
		{`{"subscribe":{"topic":"a","topic":"b"}}`, wire.Command{Verb: wire.Subscribe, Topic: []byte("b")}},

		// Keys are case-sensitive, unlike in encoding/json.
		{`{"ID":"x","ping":{},"Subscribe":{"topic":"a"}}`, wire.Command{Verb: wire.Ping}},
	} {
		got, rest, err := codec.Parse([]byte(c.in))
		if err != nil || rest != nil {
			t.Errorf("Parse(%s): %v, and %q behind it", c.in, err, rest)
		} else if !reflect.DeepEqual(got, c.want) {
			t.Errorf("Parse(%s)\n got %s\nwant %s", c.in, show(got), show(c.want))
		}
		sameCommand(t, []byte(c.in))
	}
}

var badCommands = []struct {
	in   string
	code wire.ErrorCode
	id   string // what the reply repeats
}{
	{``, wire.BadRequest, ""},
	{`null`, wire.BadRequest, ""},
	{`[]`, wire.BadRequest, ""},
	{`"ping"`, wire.BadRequest, ""},
	{`{`, wire.BadRequest, ""},
	{`{"id":1,"ping":{}`, wire.BadRequest, "1"},
	{`{"id":1,"ping":{}}x`, wire.BadRequest, "1"},
	{`{"id":1,"ping":{}}{}`, wire.BadRequest, "1"},
	{`{"id":1,"ping":{},}`, wire.BadRequest, "1"},
	{`{id:1}`, wire.BadRequest, ""},
	{`{"id":1,"ping":{"a":` + wstest.Nested(31, "[", "", "]") + `}}`, wire.BadRequest, "1"},

	{`{"id":null,"ping":{}}`, wire.BadRequest, ""},
	{`{"id":true,"ping":{}}`, wire.BadRequest, ""},
	{`{"id":{},"ping":{}}`, wire.BadRequest, ""},
	{`{"id":[1],"ping":{}}`, wire.BadRequest, ""},
	{`{"id":"` + strings.Repeat("x", 63) + `","ping":{}}`, wire.BadRequest, ""},

	{`{}`, wire.UnknownCommand, ""},
	{`{"id":1}`, wire.UnknownCommand, "1"},
	{`{"id":1,"shout":{}}`, wire.UnknownCommand, "1"},
	{`{"id":1,"Ping":{}}`, wire.UnknownCommand, "1"},

	{`{"id":1,"ping":{},"subscribe":{"topic":"a"}}`, wire.BadRequest, "1"},
	{`{"id":1,"ping":{},"ping":{}}`, wire.BadRequest, "1"},
	{`{"id":1,"ping":null}`, wire.BadRequest, "1"},
	{`{"ping":[],"id":1}`, wire.BadRequest, "1"},
	{`{"id":1,"subscribe":"news"}`, wire.BadRequest, "1"},
	{`{"id":1,"subscribe":{"topic":1}}`, wire.BadRequest, "1"},
	{`{"id":1,"subscribe":{"topic":null}}`, wire.BadRequest, "1"},
	{`{"id":1,"subscribe":{"topic":"a","after":"1"}}`, wire.BadRequest, "1"},
	{`{"id":1,"subscribe":{"topic":"a","after":-1}}`, wire.BadRequest, "1"},
	{`{"id":1,"subscribe":{"topic":"a","after":1.0}}`, wire.BadRequest, "1"},
	{`{"id":1,"subscribe":{"topic":"a","after":1e3}}`, wire.BadRequest, "1"},
	{`{"id":1,"subscribe":{"topic":"a","after":18446744073709551616}}`, wire.BadRequest, "1"},
	{`{"id":1,"subscribe":{"topic":"a","epoch":1}}`, wire.BadRequest, "1"},
	{`{"id":1,"publish":{"topic":"a"}}`, wire.BadRequest, "1"},
	{`{"id":1,"publish":{"topic":"a","data":1,"id":2}}`, wire.BadRequest, "1"},
	{`{"id":1,"publish":{"topic":"a","data":1,"id":"` + strings.Repeat("x", 129) + `"}}`, wire.BadRequest, "1"},
	{`{"id":1,"ack":{}}`, wire.BadRequest, "1"},
	{`{"id":1,"ack":{"id":""}}`, wire.BadRequest, "1"},

	{`{"id":1,"subscribe":{}}`, wire.BadTopic, "1"},
	{`{"id":1,"subscribe":{"topic":""}}`, wire.BadTopic, "1"},
	{`{"id":1,"subscribe":{"topic":"$user"}}`, wire.BadTopic, "1"},
	{`{"id":1,"unsubscribe":{"topic":"a b"}}`, wire.BadTopic, "1"},
	{`{"id":1,"publish":{"topic":"\u0000","data":1}}`, wire.BadTopic, "1"},
	{`{"id":1,"subscribe":{"topic":"` + strings.Repeat("x", 256) + `"}}`, wire.BadTopic, "1"},
}

func TestParseErrors(t *testing.T) {
	for _, c := range badCommands {
		got, rest, err := codec.Parse([]byte(c.in))
		switch {
		case rest != nil:
			t.Errorf("Parse(%.200s) leaves %q", c.in, rest)
		case err == nil:
			t.Errorf("Parse(%.200s) = %s, want %s", c.in, show(got), c.code)
		case err.Code != c.code || err.Message == "" || string(got.ID) != c.id:
			t.Errorf("Parse(%.200s): id %q, %v, want id %q, %s", c.in, got.ID, err, c.id, c.code)
		}
		sameCommand(t, []byte(c.in))
	}
	if _, _, err := codec.Parse([]byte(`[1]`)); err == nil || err.Message != "not a JSON object" {
		t.Errorf("Parse([1]): %v", err)
	}
}

// show prints a command with its slices as text.
func show(c wire.Command) string {
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

// modelCommand is Parse over encoding/json: the last of several fields
// counts, null is not a string, keys are case-sensitive, a second command is
// an error even when it is the same one.
func modelCommand(b []byte) (c wire.Command, code wire.ErrorCode) {
	list, ok := members(b)
	if !ok || !json.Valid(b) || wstest.JSONDepth(b) > wire.MaxDepth {
		return c, wire.BadRequest
	}
	var body []byte
	for _, m := range list {
		switch m.key {
		case "id":
			if !strings.ContainsAny(string(m.val[:1]), `"-0123456789`) || len(m.val) > 64 {
				return c, wire.BadRequest
			}
			c.ID = m.val
		case "subscribe", "unsubscribe", "publish", "ack", "ping":
			if c.Verb != wire.None {
				return c, wire.BadRequest
			}
			c.Verb = map[string]wire.Verb{"subscribe": wire.Subscribe, "unsubscribe": wire.Unsubscribe, "publish": wire.Publish, "ack": wire.Ack, "ping": wire.Ping}[m.key]
			body = m.val
		}
	}
	if c.Verb == wire.None {
		return c, wire.UnknownCommand
	}
	list, ok = members(body)
	if !ok {
		return c, wire.BadRequest
	}
	for _, m := range list {
		if !modelField(&c, m) {
			return c, wire.BadRequest
		}
	}
	needsTopic := c.Verb == wire.Subscribe || c.Verb == wire.Unsubscribe || c.Verb == wire.Publish
	switch {
	case c.Verb == wire.Publish && c.Data == nil, c.Verb == wire.Ack && len(c.MessageID) == 0:
		return c, wire.BadRequest
	case needsTopic && wire.CheckTopic(c.Topic) != nil:
		return c, wire.BadTopic
	}
	return c, ""
}

func modelField(c *wire.Command, m member) bool {
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
		return isString && len(s) <= wire.MaxID
	case "after":
		c.After, err = strconv.ParseUint(string(m.val), 10, 64)
		c.HasAfter = true
		return err == nil
	case "data":
		c.Data = m.val
	}
	return true
}

// sameCommand wants Parse to agree with the model.
func sameCommand(t *testing.T, b []byte) {
	t.Helper()
	got, _, err := codec.Parse(b)
	if !utf8.Valid(b) {
		return // the frame reader has refused it; here it only must not panic
	}
	want, code := modelCommand(b)
	switch {
	case err == nil && code != "":
		t.Fatalf("Parse(%q) = %s, the model says %s", b, show(got), code)
	case err != nil && err.Code != code:
		t.Fatalf("Parse(%q): %v, the model says %q", b, err, code)
	case err != nil && code != wire.BadRequest && !bytes.Equal(got.ID, want.ID):
		t.Fatalf("Parse(%q) leaves id %q, want %q", b, got.ID, want.ID)
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
			t.Fatalf("Parse(%q): %s is %q, the model says %q", b, f.name, f.got, f.want)
		}
	}
	if got.Verb != want.Verb || got.After != want.After || got.HasAfter != want.HasAfter {
		t.Fatalf("Parse(%q) = %s, the model says %s", b, show(got), show(want))
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
		`{"publish":{"topic":"a","data":` + wstest.Nested(30, "[", "", "]") + `}}`,
		`{"publish":{"topic":"a","data":` + wstest.Nested(31, "[", "", "]") + `}}`,
		`{"unknown":1}`, `{}`, `[]`, `{"id":1,`, "\xff", `{"ping":{}} {}`, `{"ID":1,"Ping":{}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		sameCommand(t, b)
		wantWrittenAgain(t, b)
	})
}

// Commands are written as docs/protocol.md has them.
func TestAppendCommand(t *testing.T) {
	for want, c := range map[string]wire.Command{
		`{"ping":{}}`:                                                  {Verb: wire.Ping},
		`{"id":"a","ping":{}}`:                                         {Verb: wire.Ping, ID: []byte(`"a"`)},
		`{"id":1,"subscribe":{"topic":"news"}}`:                        {Verb: wire.Subscribe, ID: []byte("1"), Topic: []byte("news"), After: 3},
		`{"id":2,"subscribe":{"topic":"news","after":0}}`:              {Verb: wire.Subscribe, ID: []byte("2"), Topic: []byte("news"), HasAfter: true},
		`{"id":2,"subscribe":{"topic":"news","after":12,"epoch":"x"}}`: {Verb: wire.Subscribe, ID: []byte("2"), Topic: []byte("news"), After: 12, HasAfter: true, Epoch: []byte("x")},
		`{"id":3,"unsubscribe":{"topic":"\"\\"}}`:                      {Verb: wire.Unsubscribe, ID: []byte("3"), Topic: []byte(`"\`)},
		`{"id":4,"publish":{"topic":"news","data":{"a":1}}}`:           {Verb: wire.Publish, ID: []byte("4"), Topic: []byte("news"), Data: []byte(`{"a":1}`)},
		`{"id":4,"publish":{"topic":"news","id":"m","data":null}}`:     {Verb: wire.Publish, ID: []byte("4"), Topic: []byte("news"), MessageID: []byte("m"), Data: []byte("null")},
		`{"id":5,"ack":{"id":"m"}}`:                                    {Verb: wire.Ack, ID: []byte("5"), MessageID: []byte("m")},
	} {
		if got := string(tocsin.AppendCommand([]byte("before"), c)); got != "before"+want {
			t.Errorf("got %s, want %s", got, want)
		}
		wantWrittenAgain(t, []byte(want))
	}
}

// wantWrittenAgain wants a command that Parse accepts to be written as one that
// means the same.
func wantWrittenAgain(t *testing.T, b []byte) {
	t.Helper()
	c, _, err := codec.Parse(b)
	if err != nil || !utf8.Valid(b) {
		return
	}
	again := tocsin.AppendCommand(nil, c)
	got, _, err := codec.Parse(again)
	if err != nil {
		t.Fatalf("%q is written as %q: %v", b, again, err)
	}
	// What the verb does not ask for is not written.
	want := wire.Command{Verb: c.Verb, ID: c.ID}
	switch c.Verb {
	case wire.Subscribe:
		want.Topic, want.Epoch, want.After, want.HasAfter = c.Topic, c.Epoch, c.After, c.HasAfter
	case wire.Unsubscribe:
		want.Topic = c.Topic
	case wire.Publish:
		want.Topic, want.Data, want.MessageID = c.Topic, c.Data, c.MessageID
	case wire.Ack:
		want.MessageID = c.MessageID
	}
	if show(got) != show(want) {
		t.Fatalf("%q is written as %q, which reads as %s", b, again, show(got))
	}
}
