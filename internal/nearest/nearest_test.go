package nearest

import (
	"strings"
	"testing"
)

func TestWord(t *testing.T) {
	known := []string{"topic", "user", "users", "conn", "data", "id", "ttl", "collapse_key", "idempotency_key", "timeout_ms", "max-topics", "drain", "drain-delay"}
	for _, c := range []struct{ given, want string }{
		{"tll", "ttl"},
		{"tl", "ttl"},
		{"topics", "topic"},
		{"toipc", "topic"},
		{"uesr", "user"},
		{"usr", "user"},
		{"Topic", "topic"},
		{"idempotencyKey", "idempotency_key"},
		{"idempotency-key", "idempotency_key"},
		{"collapse", "collapse_key"},
		{"timeout", "timeout_ms"},
		{"ttl_seconds", "ttl"},
		{"MAX_TOPIC", "max-topics"},
		{"drain_dealy", "drain-delay"},
		{"drian", "drain"},
		{"ids", "id"},
		{"iduser", "user"},
		{"", ""},
		{"x", ""},
		{"payload", ""},
		{"to", ""},
		{"expires", ""},
		{"message", ""},
		{"größe", ""},
		{"topic" + strings.Repeat("x", 100), ""},
	} {
		if got, ok := Word(c.given, known); got != c.want || ok != (c.want != "") {
			t.Errorf("%q is like %q, %v; want %q", c.given, got, ok, c.want)
		}
	}
	if got, ok := Word("topic", nil); ok {
		t.Errorf("of no words, %q", got)
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"", "", 0},
		{"abc", "abc", 0},
		{"abc", "acb", 1},
		{"abc", "ab", 1},
		{"ab", "abc", 1},
		{"abc", "axc", 1},
		{"abcd", "badc", 2},
		{"kitten", "sitting", 3},
		{"abc", "xyzuvw", 4}, // not less than the limit
		{"abcd", "wxyz", 4},
	} {
		if got := distance(c.a, c.b, 4); got != c.want {
			t.Errorf("distance of %q and %q is %d, want %d", c.a, c.b, got, c.want)
		}
		if got := distance(c.b, c.a, 4); got != c.want {
			t.Errorf("distance of %q and %q is %d, want %d", c.b, c.a, got, c.want)
		}
	}
}
