package wire

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
)

func TestMembersOfAnObject(t *testing.T) {
	var got []string
	collect := func(key, val []byte) error {
		got = append(got, string(key)+"="+string(val))
		return nil
	}
	if err := Members([]byte(` { "a" : [1, {"b":2}] , "\u0062":"x" } `), collect); err != nil {
		t.Fatal(err)
	}
	if want := []string{`a=[1, {"b":2}]`, `b="x"`}; !reflect.DeepEqual(got, want) {
		t.Errorf("members %q, want %q", got, want)
	}
	if err := Members([]byte(`{}`), collect); err != nil || len(got) != 2 {
		t.Errorf("%v, %q of no members", err, got)
	}
	stop := errors.New("stop")
	if err := Members([]byte(`{"a":1,"b":x`), func(_, _ []byte) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("%v, want yield's error", err)
	}
}

func TestElementsOfAnArray(t *testing.T) {
	var got []string
	collect := func(val []byte) error {
		got = append(got, string(val))
		return nil
	}
	if err := Elements([]byte(` [ 1 ,{"a":[2]}, "x"] `), collect); err != nil {
		t.Fatal(err)
	}
	if want := []string{`1`, `{"a":[2]}`, `"x"`}; !reflect.DeepEqual(got, want) {
		t.Errorf("elements %q, want %q", got, want)
	}
	if err := Elements([]byte(`[]`), collect); err != nil || len(got) != 3 {
		t.Errorf("%v, %q of no elements", err, got)
	}
	deep := strings.Repeat("[", MaxDepth) + strings.Repeat("]", MaxDepth)
	if err := Elements([]byte("["+deep+"]"), collect); err != nil {
		t.Errorf("an element of %d levels: %v", MaxDepth, err)
	}
}

// Objects may stand one behind another; each is walked by itself.
func TestObjectsBehindEachOther(t *testing.T) {
	var got []string
	for b := []byte(" {\"a\":1,\"\\u0062\":\"x\"}\n{}\n{\"c\":[2]}\n"); len(b) > 0; {
		o := NewObject(b)
		for {
			key, val, done, err := o.Next()
			if err != nil {
				t.Fatal(err)
			}
			if done {
				break
			}
			got = append(got, string(key)+"="+string(val))
		}
		got = append(got, ".")
		b = o.Rest()
	}
	if want := []string{"a=1", `b="x"`, ".", ".", "c=[2]", "."}; !reflect.DeepEqual(got, want) {
		t.Errorf("members %q, want %q", got, want)
	}
}

// FuzzMembers: Members and Elements accept what CheckJSON accepts of their
// kind, and find what encoding/json finds.
func FuzzMembers(f *testing.F) {
	for _, seed := range []string{`{"a":1}`, `[1,2]`, `{}`, `[]`, `[1,]`, `{"a":1,}`, `[1`, `{`, "[\"\xff\"]", `[1]2`, `"a"`, ``, ` [ ] `, `{"a":01}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<10 { // deeper than both allow is another test's
			return
		}
		members, elements := 0, 0
		isObject := Members(b, func(_, _ []byte) error { members++; return nil }) == nil
		isArray := Elements(b, func([]byte) error { elements++; return nil }) == nil
		if err := CheckJSON(b); err != nil {
			if isObject || isArray && !errors.Is(err, errDepth) {
				t.Fatalf("%q is accepted and %v", b, err)
			}
			return
		}
		var list []json.RawMessage
		if ok := json.Unmarshal(b, &list) == nil && list != nil; ok != isArray || ok && elements != len(list) {
			t.Fatalf("%q: array %v of %d, want %v of %d", b, isArray, elements, ok, len(list))
		}
		var object map[string]json.RawMessage
		if ok := json.Unmarshal(b, &object) == nil && object != nil; ok != isObject || ok && members < len(object) {
			t.Fatalf("%q: object %v of %d, want %v of %d", b, isObject, members, ok, len(object))
		}
	})
}
