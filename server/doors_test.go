package server_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/tocsin-push/tocsin/internal/wstest"
	"github.com/tocsin-push/tocsin/server"
)

// manyFields returns n field lines.
func manyFields(n int) (lines []string) {
	for i := range n {
		lines = append(lines, fmt.Sprintf("X-%d: a", i))
	}
	return lines
}

// topicNames returns n names for ?topics=.
func topicNames(n int) string {
	return strings.ReplaceAll(strings.Join(manyFields(n), ","), ": ", "")
}

// A name that comes twice in ?topics= is one subscription and one key of the
// welcome, and counts once for the limit.
func TestHandshakeTopicsTwice(t *testing.T) {
	srv, addr := serve(t, server.Config{MaxTopics: 2})
	c := wstest.Open(t, addr)
	c.SendRaw([]byte(upgradeAt("/ws?topics=b,a,b&topics=a,%61")))
	c.WantUpgraded(sampleKey)
	welcome := string(c.NextFrame().Payload)
	if strings.Count(welcome, `"a":`) != 1 || strings.Count(welcome, `"b":`) != 1 || srv.Stats().Subscriptions != 2 {
		t.Errorf("%d subscriptions, welcome %s", srv.Stats().Subscriptions, welcome)
	}
	c.WantNothing()
	wantRefused(t, addr, upgradeAt("/ws?topics=a,b,c"), http.StatusBadRequest)
}
