package server

import (
	"testing"

	"github.com/tocsin-push/tocsin/internal/wstest"
	"github.com/tocsin-push/tocsin/wire"
)

// A connection that ends while Allow is asked about its publish does not publish.
func TestWhoHasGonePublishesNothing(t *testing.T) {
	for _, leaves := range []bool{false, true} {
		var s *sim
		s = newSim(t, 1, Config{Allow: func(c Conn, action Action, _ string) error {
			if action == ActionPublish && leaves {
				c.Close(wire.CloseForceDisconnect, "")
				s.turn(0)
			}
			return nil
		}})
		reader, writer := s.dial("/ws?topics=t"), s.dial("/ws")
		writer.send(wstest.Text(`{"id":1,"publish":{"topic":"t","data":1}}`))
		s.run()
		want := 1
		if leaves {
			want = 0
		}
		if got := len(reader.frames()); got != want || s.srv.Stats().Published != uint64(want) || s.isOpen(writer) == leaves {
			t.Errorf("leaves %v: %d messages, %d published", leaves, got, s.srv.Stats().Published)
		}
		s.check()
	}
}
