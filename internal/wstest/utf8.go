package wstest

// BadUTF8 returns the index of the first byte that no UTF-8 text can have
// there, or -1: table 3-7 of the Unicode standard, byte by byte.
func BadUTF8(b []byte) int {
	need, low, high := 0, byte(0x80), byte(0xbf)
	for i, c := range b {
		if need > 0 {
			if c < low || c > high {
				return i
			}
			need--
			low, high = 0x80, 0xbf
			continue
		}
		switch {
		case c < 0x80:
		case c >= 0xc2 && c <= 0xdf:
			need = 1
		case c >= 0xe0 && c <= 0xef:
			need = 2
			switch c {
			case 0xe0:
				low = 0xa0
			case 0xed:
				high = 0x9f
			}
		case c >= 0xf0 && c <= 0xf4:
			need = 3
			switch c {
			case 0xf0:
				low = 0x90
			case 0xf4:
				high = 0x8f
			}
		default:
			return i
		}
	}
	return -1
}
