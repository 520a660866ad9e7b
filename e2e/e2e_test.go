//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/tocsin-push/tocsin/wire"
)

// agents are the foreign clients; each runs every scenario.
var agents = map[string]func(t *testing.T) *agent{
	"chromium": func(t *testing.T) *agent { return chromium(t, "<!doctype html><title>e2e</title>") },
	"ws":       func(t *testing.T) *agent { return startAgent(t, "node", "agents/ws.mjs") },
	"python3-websockets": func(t *testing.T) *agent {
		return startAgent(t, "/usr/bin/python3", "agents/python.py")
	},
}

// chromium starts a browser that shows a page.
func chromium(t *testing.T, page string) *agent {
	t.Helper()
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = w.Write([]byte(page)) // a browser that has gone is found out elsewhere
	}))
	t.Cleanup(site.Close)
	return startAgent(t, "node", "agents/chromium.mjs", site.URL)
}

// The example of docs/protocol.md does what the document says, in a browser,
// over a restart of the server.
func TestExampleOfTheProtocol(t *testing.T) {
	doc, err := os.ReadFile("../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, ok1 := strings.Cut(string(doc), "```html\n")
	page, _, ok2 := strings.Cut(after, "```")
	s := serve(t, "--drain", "1s")
	page = strings.Replace(page, "127.0.0.1:8080", s.listen, 1)
	if !ok1 || !ok2 || !strings.Contains(page, s.listen) {
		t.Fatal("docs/protocol.md has no example in html that connects to 127.0.0.1:8080")
	}
	a := chromium(t, page)
	a.wantSeen("welcome ann")
	a.wantSeen("subscribed to news")
	s.push("publish", `{"topic":"news","data":{"n":1}}`, 1)
	a.wantSeen(`news: {"n":1}`)
	s.push("push", `{"user":"ann","data":"for ann","wait":"ack"}`, 1)
	a.wantSeen(`$user: "for ann"`)
	s.terminate()
	a.wantSeen("closed: 3001 shutdown")
	s.wantExit()
	s.start()
	a.wantSeen("missed 1 to 0 of news")
	s.push("publish", `{"topic":"news","data":{"n":2}}`, 1)
	a.wantSeen(`news: {"n":2}`)
}

func TestForeignClients(t *testing.T) {
	for name, start := range agents {
		t.Run(name, func(t *testing.T) {
			a := start(t)
			s := serve(t)
			for _, scenario := range []struct {
				name string
				run  func(*testing.T, *agent, *tocsin)
			}{
				{"topic", topic},
				{"topics in the URL", topicsInURL},
				{"user on two devices", twoDevices},
				{"connection", connection},
				{"broadcast", broadcast},
				{"raw", raw},
				{"commands", commands},
			} {
				t.Run(scenario.name, func(t *testing.T) {
					a.t, s.t = t, t
					scenario.run(t, a, s)
				})
			}
			a.t, s.t = t, t
		})
	}
}

func TestForeignClientsComeBackAfterADrain(t *testing.T) {
	for name, start := range agents {
		t.Run(name, func(t *testing.T) { drain(t, start(t), serve(t, "--drain", "1s")) })
	}
}

// close ends a socket, so that the scenarios after this one are alone.
func (c *conn) close() {
	c.a.t.Helper()
	c.a.tell(order{Op: "close", ID: c.id})
	for h := range c.events {
		if h.Event == "close" {
			return
		}
	}
}

func topic(t *testing.T, a *agent, s *tocsin) {
	c, _ := a.open(s.ws("?user=ann"))
	defer c.close()
	s.push("publish", `{"topic":"news","data":0}`, 0)
	if ok := c.wantOK(`"subscribe":{"topic":"news"}`); ok.Topic != "news" || ok.Epoch == "" {
		t.Errorf("subscribed: %+v", ok)
	}
	var last uint64
	for i := range 3 {
		data := fmt.Sprintf(`{"n":%d,"text":"grüß dich <b>👋</b>"}`, i)
		r := s.push("publish", `{"topic":"news","data":`+data+`}`, 1)
		m := c.wantMessage("news", data)
		if m.ID != r.ID || m.Seq <= last {
			t.Errorf("got id %s seq %d after %d, published %s", m.ID, m.Seq, last, r.ID)
		}
		last = m.Seq
	}
	c.wantOK(`"unsubscribe":{"topic":"news"}`)
	s.push("publish", `{"topic":"news","data":0}`, 0)
}

func topicsInURL(t *testing.T, a *agent, s *tocsin) {
	c, w := a.open(s.ws("?topics=red,green"))
	defer c.close()
	if len(w.Topics) != 2 || w.Topics["red"].Epoch == "" || w.Topics["green"].Epoch == "" {
		t.Errorf("welcome.topics is %v", w.Topics)
	}
	s.push("publish", `{"topic":"red","data":[1]}`, 1)
	s.push("publish", `{"topic":"green","data":[2]}`, 1)
	// Order is promised within a topic, not between two.
	seen := map[string]string{}
	for range 2 {
		if m := c.next().Message; m != nil {
			seen[m.Topic] = string(m.Data)
		}
	}
	if len(seen) != 2 || seen["red"] != "[1]" || seen["green"] != "[2]" {
		t.Errorf("got %v", seen)
	}
}

func twoDevices(t *testing.T, a *agent, s *tocsin) {
	s.post("push", `{"user":"bob","data":0}`, http.StatusNotFound)
	phone, w := a.open(s.ws("?user=bob"))
	defer phone.close()
	if w.User != "bob" {
		t.Errorf("welcome.user is %q", w.User)
	}
	laptop, _ := a.open(s.ws("?user=bob"))
	defer laptop.close()
	other, _ := a.open(s.ws("?user=eve"))
	defer other.close()
	s.push("push", `{"user":"bob","data":"both"}`, 2)
	phone.wantMessage(wire.UserTopic, `"both"`)
	laptop.wantMessage(wire.UserTopic, `"both"`)
	other.wantOK(`"ping":{}`) // and nothing before it
}

func connection(t *testing.T, a *agent, s *tocsin) {
	c, w := a.open(s.ws("?user=bob"))
	defer c.close()
	twin, _ := a.open(s.ws("?user=bob"))
	defer twin.close()
	s.push("push", fmt.Sprintf(`{"conn":%q,"data":"one"}`, w.Conn), 1)
	c.wantMessage(wire.UserTopic, `"one"`)
	twin.wantOK(`"ping":{}`)
}

func broadcast(t *testing.T, a *agent, s *tocsin) {
	var all []*conn
	for _, query := range []string{"", "?user=ann", "?user=bob&topics=news"} {
		c, _ := a.open(s.ws(query))
		defer c.close()
		all = append(all, c)
	}
	s.push("broadcast", `{"data":{"to":"everybody"}}`, len(all))
	for _, c := range all {
		c.wantMessage(wire.AllTopic, `{"to":"everybody"}`)
	}
}

func raw(t *testing.T, a *agent, s *tocsin) {
	c := a.dial(s.ws("?user=raw&format=raw&topics=prices"), 0)
	defer c.close()
	s.push("publish", `{"topic":"prices","data":{"eur":1.5}}`, 1)
	if got := c.want("text").Text; got != `{"eur":1.5}` {
		t.Errorf("got %q, want the bare payload", got)
	}
	s.push("push", `{"user":"raw","data":"for you"}`, 1)
	if got := c.want("text").Text; got != `"for you"` {
		t.Errorf("got %q, want the bare payload", got)
	}
}

func commands(t *testing.T, a *agent, s *tocsin) {
	c, _ := a.open(s.ws("?user=ann"))
	defer c.close()
	c.wantOK(`"ping":{}`)
	c.wantError(`{"id":100,"sing":{}}`, wire.UnknownCommand)
	c.wantError(`{"id":101,"subscribe":{}}`, wire.BadTopic)
	c.wantError(`{"id":102,"subscribe":{"topic":"$user"}}`, wire.BadTopic)
	c.wantError(`{"id":103,"unsubscribe":{"topic":"never"}}`, wire.NotSubscribed)
	c.wantError(`{"id":104,"ack":{"id":"nobody-waits"}}`, wire.NotFound)
	c.wantError(`hello`, wire.BadRequest)
	c.wantOK(`"ping":{}`) // the connection lives

	c.wantOK(`"subscribe":{"topic":"chat"}`)
	writer, _ := a.open(s.ws("?user=bob"))
	defer writer.close()
	ok := writer.wantOK(`"publish":{"topic":"chat","data":{"hi":1}}`)
	if m := c.wantMessage("chat", `{"hi":1}`); m.ID != ok.MessageID || m.Seq != ok.Seq {
		t.Errorf("published as %s, %d; arrived as %s, %d", ok.MessageID, ok.Seq, m.ID, m.Seq)
	}
}

// drain stops the server under its clients, starts it again, and has them come
// back as goodbye says.
func drain(t *testing.T, a *agent, s *tocsin) {
	var conns []*conn
	for i := range 3 {
		c, _ := a.open(s.ws(fmt.Sprintf("?user=u%d&topics=news", i)))
		conns = append(conns, c)
	}
	s.push("publish", `{"topic":"news","data":"before"}`, len(conns))
	for _, c := range conns {
		c.wantMessage("news", `"before"`)
	}
	s.terminate()
	var goodbyes []*wire.Goodbye
	for _, c := range conns {
		g := c.next().Goodbye
		if g == nil || g.Code != wire.CloseShutdown || g.Reason == "" || g.RetryAfterMS <= 0 {
			t.Fatalf("goodbye is %+v", g)
		}
		for _, other := range goodbyes {
			if g.RetryAfterMS == other.RetryAfterMS {
				t.Errorf("two clients were told to come back after the same %d ms", g.RetryAfterMS)
			}
		}
		goodbyes = append(goodbyes, g)
		if h := c.want("close"); h.Code != int(wire.CloseShutdown) || h.Text == "" {
			t.Errorf("closed with %d %q", h.Code, h.Text)
		}
	}
	s.wantExit()
	s.start()
	for i, g := range goodbyes {
		conns[i] = a.dial(s.ws(fmt.Sprintf("?user=u%d&topics=news", i)), g.RetryAfterMS)
		conns[i].welcome()
	}
	s.push("publish", `{"topic":"news","data":"after"}`, len(conns))
	for _, c := range conns {
		c.wantMessage("news", `"after"`)
	}
}
