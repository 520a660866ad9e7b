package server

import (
	"fmt"
	"testing"

	"github.com/tocsin-push/tocsin/internal/wstest"
	"github.com/tocsin-push/tocsin/netpoll"
)

// benchSim starts a simulation with 1,000 users on one topic, whose sockets take
// whatever they are sent from here on.
func benchSim(b *testing.B) *sim {
	s := newSim(b, 1, Config{})
	for i := range 1000 {
		s.dial(fmt.Sprintf("/ws?user=u%d&topics=news", i))
	}
	s.Sink = true
	return s
}

// receive has the server read in, which nobody changes.
func (p *peer) receive(in []byte) {
	p.In = in
	p.raise(netpoll.Event{Readable: true})
	p.s.turn(0)
}

// BenchmarkConnect is a connection with a user and a topic, from its accept to
// its end, without the kernel's part.
func BenchmarkConnect(b *testing.B) {
	s := benchSim(b)
	p := s.socket()
	head := []byte(wstest.Request("tocsin.test", "/ws?user=u1000&topics=news", "dGhlIHNhbXBsZSBub25jZQ=="))
	b.ReportAllocs()
	for b.Loop() {
		p.Again()
		s.probe.Admit(p.FD)
		s.turn(0)
		p.receive(head)
		p.hangUp()
		s.turn(0)
	}
	if open := s.srv.Stats().Connections; open != 1000 || !p.Gone {
		b.Errorf("%d connections are open", open)
	}
}

// BenchmarkCommand is a message that is read, acted on and answered, without the
// kernel's part.
func BenchmarkCommand(b *testing.B) {
	b.Run("ping", func(b *testing.B) { benchCommand(b, `{"id":1,"ping":{}}`) })
	b.Run("subscribe", func(b *testing.B) {
		benchCommand(b, `{"id":1,"unsubscribe":{"topic":"news"}}`, `{"id":2,"subscribe":{"topic":"news"}}`)
	})
}

func benchCommand(b *testing.B, commands ...string) {
	s := benchSim(b)
	var in []byte
	for _, command := range commands {
		in = append(in, wstest.Encode(wstest.Text(command))...)
	}
	b.ReportAllocs()
	for b.Loop() {
		s.order[0].receive(in)
	}
}
