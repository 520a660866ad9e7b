//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"

	protocol "github.com/tocsin-push/tocsin/wire/tocsin"
)

// The example of docs/protocol.md drops messages that it has, comes back from a
// server that has gone silent, and stays away when it is told to.
func TestExampleMindsWhatTheProtocolSays(t *testing.T) {
	doc, err := os.ReadFile("../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	var visits atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		visit := visits.Add(1)
		upgrader := ws.HTTPUpgrader{Protocol: func(p string) bool { return p == protocol.Subprotocol }}
		conn, _, _, err := upgrader.Upgrade(r, w)
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		hasty(t, conn, visit)
	}))
	defer server.Close()
	_, after, _ := strings.Cut(string(doc), "```html\n")
	page, _, _ := strings.Cut(after, "```")
	a := chromium(t, strings.Replace(page, "127.0.0.1:8080", server.Listener.Addr().String(), 1))
	a.wantSeen("news: \"six\"\nnews: \"seven\"\nclosed: 1006 silence") // nothing twice
	a.wantSeen("missed 8 to 9 of news: overflow\nnews: \"ten\"\nclosed: 3500 invalid token")
	if n := visits.Load(); n != 2 {
		t.Errorf("it came %d times, want 2", n)
	}
}

// hasty is a server that repeats itself. Once it has been subscribed to it is
// silent for ever on its first connection, and closes its second.
func hasty(t *testing.T, conn net.Conn, visit int32) {
	say := func(text string) {
		if err := wsutil.WriteServerText(conn, []byte(text)); err != nil {
			t.Error(err)
		}
	}
	say(`{"welcome":{"conn":"c","user":"ann","ping":1}}`)
	for {
		text, err := wsutil.ReadClientText(conn)
		if err != nil {
			return
		}
		var command struct {
			ID        int
			Subscribe *struct {
				After uint64
				Epoch string
			}
		}
		if err := json.Unmarshal(text, &command); err != nil {
			t.Errorf("the page said %s: %v", text, err)
		}
		switch {
		case command.Subscribe == nil: // a ping, and this server is silent
		case visit == 1:
			say(fmt.Sprintf(`{"id":%d,"ok":{"topic":"news","seq":5,"epoch":"x"}}`, command.ID))
			for _, m := range []string{`6,"data":"six"`, `6,"data":"six"`, `5,"data":"five"`, `7,"data":"seven"`} {
				say(`{"topic":"news","id":"m","seq":` + m + `}`)
			}
		default:
			if command.Subscribe.After != 7 || command.Subscribe.Epoch != "x" {
				t.Errorf("it goes on with %s", text)
			}
			say(fmt.Sprintf(`{"id":%d,"ok":{"topic":"news","seq":7,"epoch":"x","recovered":true}}`, command.ID))
			say(`{"gap":{"topic":"news","epoch":"x","from":8,"to":9,"reason":"overflow"}}`)
			say(`{"topic":"news","id":"m","seq":9,"data":"nine"}`)
			say(`{"topic":"news","id":"m","seq":10,"data":"ten"}`)
			if err := ws.WriteFrame(conn, ws.NewCloseFrame(ws.NewCloseFrameBody(3500, "invalid token"))); err != nil {
				t.Error(err)
			}
			_, _ = ws.ReadHeader(conn) // of the answer
			return
		}
	}
}
