package wire

import (
	"unicode"
	"unicode/utf8"
)

// CheckTopic reports why name cannot be a topic: it is 1–255 bytes of UTF-8
// without control characters or spaces, and a leading '$' is the server's own.
// A nil error means that it can.
func CheckTopic[T ~string | ~[]byte](name T) *Error {
	if len(name) > 0 && name[0] == reservedAt {
		return Errorf(BadTopic, "topic names that start with $ are reserved")
	}
	return checkName("topic", name, MaxTopic)
}

// CheckUser reports why name cannot be a user name; the rules are a topic's,
// without the reserved '$'.
func CheckUser[T ~string | ~[]byte](name T) *Error { return checkName("user", name, MaxUser) }

func checkName[T ~string | ~[]byte](what string, name T, limit int) *Error {
	switch {
	case len(name) == 0:
		return Errorf(BadTopic, "%s name is empty", what)
	case len(name) > limit:
		return Errorf(BadTopic, "%s name has %d bytes, the limit is %d", what, len(name), limit)
	}
	for i := 0; i < len(name); {
		// One character at a time: a conversion of the whole would allocate.
		r, size := utf8.DecodeRuneInString(string(name[i:min(len(name), i+utf8.UTFMax)]))
		switch {
		case r == utf8.RuneError && size == 1:
			return Errorf(BadTopic, "%s name is not UTF-8 at byte %d", what, i)
		case unicode.IsControl(r) || unicode.IsSpace(r):
			return Errorf(BadTopic, "%s name has a space or control character at byte %d", what, i)
		}
		i += size
	}
	return nil
}
