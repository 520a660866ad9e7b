package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

var testKeys = keyring{APIKey: []string{"a-key-that-is-long-enough", "the-one-before-it"}}

func signed(t *testing.T, method jwt.SigningMethod, key any, claims jwt.MapClaims) string {
	t.Helper()
	token, err := jwt.NewWithClaims(method, claims).SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// TestTokens wants only what one of the keys has signed, for a user, and for a
// time that is not over (docs/faults.md A1, A3, A4 and K3).
func TestTokens(t *testing.T) {
	now := time.Now()
	in := func(d time.Duration) int64 { return now.Add(d).Unix() }
	first, second := []byte(testKeys.APIKey[0]), []byte(testKeys.APIKey[1])
	good := signed(t, jwt.SigningMethodHS256, first, jwt.MapClaims{"sub": "42", "exp": in(time.Hour)})
	for _, c := range []struct {
		name, token string
		want        error
	}{
		{"good", good, nil},
		{"second key", signed(t, jwt.SigningMethodHS256, second, jwt.MapClaims{"sub": "42", "exp": in(time.Hour)}), nil},
		{"expired within the leeway", signed(t, jwt.SigningMethodHS256, first, jwt.MapClaims{"sub": "42", "exp": in(-15 * time.Second)}), nil},
		{"more claims", signed(t, jwt.SigningMethodHS256, first, jwt.MapClaims{"sub": "42", "exp": in(time.Hour), "aud": "x", "admin": true}), nil},
		{"expired", signed(t, jwt.SigningMethodHS256, first, jwt.MapClaims{"sub": "42", "exp": in(-time.Minute)}), errExpired},
		{"not yet", signed(t, jwt.SigningMethodHS256, first, jwt.MapClaims{"sub": "42", "exp": in(time.Hour), "nbf": in(time.Minute)}), errBadToken},
		{"no exp", signed(t, jwt.SigningMethodHS256, first, jwt.MapClaims{"sub": "42"}), errNoExpiry},
		{"no sub", signed(t, jwt.SigningMethodHS256, first, jwt.MapClaims{"exp": in(time.Hour)}), errBadToken},
		{"sub is a number", signed(t, jwt.SigningMethodHS256, first, jwt.MapClaims{"sub": 42, "exp": in(time.Hour)}), errBadToken},
		{"other key", signed(t, jwt.SigningMethodHS256, []byte("guessed"), jwt.MapClaims{"sub": "42", "exp": in(time.Hour)}), errUnsigned},
		{"empty key", signed(t, jwt.SigningMethodHS256, []byte(""), jwt.MapClaims{"sub": "42", "exp": in(time.Hour)}), errUnsigned},
		{"none", signed(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, jwt.MapClaims{"sub": "42", "exp": in(time.Hour)}), errUnsigned},
		{"HS512", signed(t, jwt.SigningMethodHS512, first, jwt.MapClaims{"sub": "42", "exp": in(time.Hour)}), errUnsigned},
		{"no signature", good[:strings.LastIndexByte(good, '.')+1], errUnsigned},
		{"two parts", good[:strings.LastIndexByte(good, '.')], errBadToken},
		{"garbage", "garbage", errBadToken},
		{"none at all", "", errNoToken},
		{"long", good + strings.Repeat("A", maxToken), errLongToken},
	} {
		user, err := testKeys.verify(c.token)
		if !errors.Is(err, c.want) || (c.want == nil) != (user == "42") {
			t.Errorf("%s: user %q, %v, want %v", c.name, user, err, c.want)
		}
	}
	for _, sub := range []string{"a b", "a\n", strings.Repeat("a", 256)} {
		token := signed(t, jwt.SigningMethodHS256, first, jwt.MapClaims{"sub": sub, "exp": in(time.Hour)})
		if user, err := testKeys.verify(token); err == nil || user != "" {
			t.Errorf("sub %q is user %q", sub, user)
		}
	}
}

func TestWhereTokensAreGiven(t *testing.T) {
	token, err := testKeys.sign("42", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		query, header string
		ok            bool
	}{
		{"?token=" + token, "", true},
		{"", "Bearer " + token, true},
		{"", "bearer  " + token, true},
		{"?token=wrong", "Bearer " + token, true},
		{"?token=" + token, "Basic abc", true},
		{"?token=" + token, "Bearer wrong", false},
		{"", token, false},
		{"?user=42", "", false},
		{"", "", false},
	} {
		r := httptest.NewRequest(http.MethodGet, "/ws"+c.query, nil)
		if c.header != "" {
			r.Header.Set("Authorization", c.header)
		}
		if user, err := testKeys.authenticate(r); (err == nil) != c.ok || c.ok != (user == "42") {
			t.Errorf("%s, %s: user %q, %v", c.query, c.header, user, err)
		} else if err != nil && strings.Contains(err.Error(), token[:20]) {
			t.Errorf("the error repeats the token: %v", err)
		}
	}
}

// FuzzToken: nobody comes in without a signature that crypto/hmac makes of the
// same bytes with one of the keys (docs/faults.md A1).
func FuzzToken(f *testing.F) {
	good, err := testKeys.sign("42", 20*365*24*time.Hour)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add("eyJhbGciOiJub25lIn0.eyJzdWIiOiI0MiIsImV4cCI6OTk5OTk5OTk5OX0.")
	f.Add("..")
	f.Fuzz(func(t *testing.T, token string) {
		user, err := testKeys.verify(token)
		if err != nil {
			return
		}
		at := strings.LastIndexByte(token, '.')
		given, err := base64.RawURLEncoding.DecodeString(token[at+1:])
		if err != nil || user == "" {
			t.Fatalf("user %q with %q", user, token)
		}
		for _, key := range testKeys.APIKey {
			mac := hmac.New(sha256.New, []byte(key))
			mac.Write([]byte(token[:at]))
			if hmac.Equal(mac.Sum(nil), given) {
				return
			}
		}
		t.Fatalf("user %q came in with %q", user, token)
	})
}
