package wire

import (
	"testing"

	"github.com/gobwas/ws"
)

func TestZeroAllocations(t *testing.T) {
	var (
		sink    error
		hdr     ws.Header
		dst     = make([]byte, 0, 4096)
		publish = []byte(`{"id":"x","publish":{"topic":"news","data":{"a":[1,2.5e3,"\u00e9"]},"id":"m"}}`)
		frame   = AppendMasked(nil, ws.OpText, true, [4]byte{1, 2, 3, 4}, publish)
	)
	for _, f := range []struct {
		name string
		run  func()
	}{
		{"CheckJSON", func() { sink = CheckJSON(publish) }},
		{"Object", func() {
			o := NewObject(publish)
			for done := false; !done && sink == nil; {
				_, _, done, sink = o.Next()
			}
		}},
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
