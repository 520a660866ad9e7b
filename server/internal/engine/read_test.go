package engine

import (
	"testing"

	"github.com/gobwas/ws"

	"github.com/tocsin-push/tocsin/wire"
)

// FuzzCloseFrame holds closeCode to gobwas's judgement of the same payload,
// which knows no 1012 to 1014, the codes that IANA has added since RFC 6455,
// and lets codes above 4999 through.
func FuzzCloseFrame(f *testing.F) {
	for _, s := range []string{"", "\x03", "\x03\xe8", "\x03\xe8bye", "\x03\xed", "\x03\xf4", "\x0b\xb8ok", "\x13\x88", "\x03\xe8\xff"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		code, bad := closeCode(payload)
		switch {
		case len(payload) == 0:
			if code != closeNoStatus || bad.Code != 0 {
				t.Fatal(code, bad)
			}
			return
		case len(payload) == 1:
			if bad.Code != wire.CloseProtocolError {
				t.Fatal(code, bad)
			}
			return
		}
		status, reason := ws.ParseCloseFrameData(payload)
		switch {
		case status >= 1012 && status <= 1014:
			status = 1011
		case status >= 5000:
			status = 999
		}
		err := ws.CheckCloseFrameData(status, reason)
		if (err == nil) != (bad.Code == 0) {
			t.Fatalf("%x: %v, %v, gobwas says %v", payload, code, bad, err)
		}
		if wantData := err == ws.ErrProtocolInvalidUTF8; err != nil && wantData != (bad.Code == wire.CloseInvalidData) { //nolint:errorlint // it is returned bare
			t.Fatalf("%x: %v, gobwas says %v", payload, bad, err)
		}
	})
}
