package server

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"encoding/binary"

	"github.com/tocsin-push/tocsin/server/internal/engine"
)

// ids turns refs into connection ids that cannot be guessed: one AES block of
// the ref and zeros, under a key of this process. Nothing is stored.
type ids struct{ block cipher.Block }

func newIDs(random func([]byte)) ids {
	var key [16]byte
	random(key[:])
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err) // the key has a valid length
	}
	return ids{block}
}

const idLength = 22 // 16 bytes in unpadded base64url

func (i ids) name(r engine.Ref) string { return string(i.append(nil, r)) }

func (i ids) append(dst []byte, r engine.Ref) []byte {
	// The block stands behind the room for its text: cipher.Block would make
	// one of our own escape to the heap.
	at := len(dst) + idLength
	dst = append(dst, make([]byte, idLength+aes.BlockSize)...)
	b := dst[at:]
	binary.LittleEndian.PutUint64(b, uint64(r))
	i.block.Encrypt(b, b)
	base64.RawURLEncoding.Encode(dst[at-idLength:at], b)
	return dst[:at]
}

func (i ids) parse(id string) (engine.Ref, bool) {
	var b [aes.BlockSize]byte
	if len(id) != idLength {
		return 0, false
	}
	if n, err := base64.RawURLEncoding.Strict().Decode(b[:], []byte(id)); err != nil || n != len(b) {
		return 0, false
	}
	i.block.Decrypt(b[:], b[:])
	return engine.Ref(binary.LittleEndian.Uint64(b[:])), binary.LittleEndian.Uint64(b[8:]) == 0
}
