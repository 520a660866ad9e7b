package tocsin

import "github.com/tocsin-push/tocsin/wire"

// Raw is the [wire.Codec] of ?format=raw, for clients that want no envelope: a
// message is its bare data. There is no welcome, and nothing is told that was
// not asked for. Commands are as in tocsin.v1, and so are all answers to them.
type Raw struct{ Codec }

// AppendWelcome implements [wire.Codec]: there is none.
func (Raw) AppendWelcome(dst []byte, _ wire.Greeting) []byte { return dst }

// AppendMessage implements [wire.Codec].
func (Raw) AppendMessage(dst []byte, m wire.Message) []byte { return append(dst, m.Data...) }

// AppendGap implements [wire.Codec]: there is none.
func (Raw) AppendGap(dst []byte, _ wire.Gap) []byte { return dst }

// TellsGaps implements [wire.Codec].
func (Raw) TellsGaps() bool { return false }

// AppendSubscribed implements [wire.Codec]: there is none.
func (Raw) AppendSubscribed(dst []byte, _ string, _ wire.Position) []byte { return dst }

// AppendCancel implements [wire.Codec]: there is none.
func (Raw) AppendCancel(dst []byte, _ wire.Cancel) []byte { return dst }

// AppendGoodbye implements [wire.Codec]: there is none.
func (Raw) AppendGoodbye(dst []byte, _ wire.Goodbye) []byte { return dst }
