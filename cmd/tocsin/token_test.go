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
		who, err := testKeys.verify(c.token)
		if !errors.Is(err, c.want) || (c.want == nil) != (who.User == "42") {
			t.Errorf("%s: %+v, %v, want %v", c.name, who, err, c.want)
		}
	}
	for _, sub := range []string{"a b", "a\n", strings.Repeat("a", 256)} {
		token := signed(t, jwt.SigningMethodHS256, first, jwt.MapClaims{"sub": sub, "exp": in(time.Hour)})
		if who, err := testKeys.verify(token); err == nil || who.User != "" {
			t.Errorf("sub %q is user %q", sub, who.User)
		}
	}
}

// A connection lasts as long as its token is taken, leeway and all.
func TestTokenExpiryIsTheConnections(t *testing.T) {
	exp := time.Now().Add(time.Hour).Truncate(time.Second)
	token := signed(t, jwt.SigningMethodHS256, []byte(testKeys.APIKey[0]), jwt.MapClaims{"sub": "42", "exp": exp.Unix()})
	if who, err := testKeys.verify(token); err != nil || !who.Expires.Equal(exp.Add(leeway)) {
		t.Errorf("%+v, %v, want %s and the leeway", who, err, exp)
	}
}

// forged returns a token with this header and these claims, signed with the
// first key as HS256 would be.
func forged(header, claims string) string {
	text := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(claims))
	mac := hmac.New(sha256.New, []byte(testKeys.APIKey[0]))
	mac.Write([]byte(text))
	return text + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// What a good token is made of.
const (
	year2100  = "4102444800"
	tokenHead = `{"alg":"HS256","typ":"JWT"}`
	tokenBody = `{"sub":"42","exp":` + year2100 + `}`
)

func wantRefused(t *testing.T, tokens map[string]string) {
	t.Helper()
	for name, token := range tokens {
		if who, err := testKeys.verify(token); err == nil || who.User != "" {
			t.Errorf("%s: user %q, %v", name, who.User, err)
		}
	}
}

// The form of a token is strict, and every byte of it is signed (docs/faults.md A1).
func TestHostileFormsOfTokens(t *testing.T) {
	good := forged(tokenHead, tokenBody)
	header, rest, _ := strings.Cut(good, ".")
	payload, signature, _ := strings.Cut(rest, ".")
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	nextLetter := alphabet[strings.IndexByte(alphabet, signature[len(signature)-1])+1] // the same bytes, and a bit behind them
	wantRefused(t, map[string]string{
		"dots":               strings.Repeat(".", 4096),
		"four parts":         good + ".",
		"five parts":         good + "..",
		"a space":            header + " ." + rest,
		"a line feed":        good[:20] + "\n" + good[20:],
		"a line feed behind": good[:len(good)-3] + "\n" + good[len(good)-3:],
		"a return behind":    good[:len(good)-3] + "\r" + good[len(good)-3:],
		"padded":             good + "=",
		"trailing bits":      header + "." + payload + "." + signature[:len(signature)-1] + string(nextLetter),
		"short signature":    header + "." + payload + "." + signature[:20],
		"other payload":      header + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"43","exp":`+year2100+`}`)) + "." + signature,
	})
}

// What is wrong with a header counts also if the signature is right
// (docs/faults.md A3 and A4).
func TestHostileHeadersOfTokens(t *testing.T) {
	wantRefused(t, map[string]string{
		"alg none":        forged(`{"alg":"none"}`, tokenBody),
		"alg None":        forged(`{"alg":"None"}`, tokenBody),
		"alg hs256":       forged(`{"alg":"hs256"}`, tokenBody),
		"alg HS384":       forged(`{"alg":"HS384"}`, tokenBody),
		"alg RS256":       forged(`{"alg":"RS256"}`, tokenBody),
		"alg ES256":       forged(`{"alg":"ES256"}`, tokenBody),
		"alg EdDSA":       forged(`{"alg":"EdDSA"}`, tokenBody),
		"alg empty":       forged(`{"alg":""}`, tokenBody),
		"alg a list":      forged(`{"alg":["HS256"]}`, tokenBody),
		"alg null":        forged(`{"alg":null}`, tokenBody),
		"no alg":          forged(`{}`, tokenBody),
		"ALG":             forged(`{"ALG":"HS256"}`, tokenBody),
		"alg twice":       forged(`{"alg":"HS256","alg":"none"}`, tokenBody),
		"header a list":   forged(`["HS256"]`, tokenBody),
		"header null":     forged(`null`, tokenBody),
		"header not JSON": forged(`{"alg":"HS256"`, tokenBody),
		"crit":            forged(`{"alg":"HS256","crit":["exp"],"exp":1}`, tokenBody),
		"crit unknown":    forged(`{"alg":"HS256","crit":["urn:x"],"urn:x":true}`, tokenBody),
		"crit b64":        forged(`{"alg":"HS256","crit":["b64"],"b64":true}`, tokenBody),
		"crit empty":      forged(`{"alg":"HS256","crit":[]}`, tokenBody),
		"crit null":       forged(`{"alg":"HS256","crit":null}`, tokenBody),
		"crit a text":     forged(`{"alg":"HS256","crit":"exp"}`, tokenBody),
	})
}

// What is wrong with the claims counts also if the signature is right
// (docs/faults.md A1, A3 and A4).
func TestHostileClaimsOfTokens(t *testing.T) {
	wantRefused(t, map[string]string{
		"claims null":             forged(tokenHead, `null`),
		"claims a list":           forged(tokenHead, `[`+tokenBody+`]`),
		"claims a text":           forged(tokenHead, `"sub"`),
		"claims not JSON":         forged(tokenHead, tokenBody[:len(tokenBody)-1]),
		"claims twice":            forged(tokenHead, tokenBody+tokenBody),
		"exp a text":              forged(tokenHead, `{"sub":"42","exp":"`+year2100+`"}`),
		"half a surrogate pair":   forged(tokenHead, `{"sub":"42\ud800","exp":`+year2100+`}`),
		"exp a list":              forged(tokenHead, `{"sub":"42","exp":[`+year2100+`]}`),
		"exp an object":           forged(tokenHead, `{"sub":"42","exp":{"n":`+year2100+`}}`),
		"exp true":                forged(tokenHead, `{"sub":"42","exp":true}`),
		"exp null":                forged(tokenHead, `{"sub":"42","exp":null}`),
		"exp NaN":                 forged(tokenHead, `{"sub":"42","exp":NaN}`),
		"exp Infinity":            forged(tokenHead, `{"sub":"42","exp":Infinity}`),
		"exp over a float":        forged(tokenHead, `{"sub":"42","exp":1e999}`),
		"exp huge":                forged(tokenHead, `{"sub":"42","exp":1e300}`),
		"exp over an int":         forged(tokenHead, `{"sub":"42","exp":9223372036854775808}`),
		"exp in milliseconds":     forged(tokenHead, `{"sub":"42","exp":4102444800000}`),
		"exp negative":            forged(tokenHead, `{"sub":"42","exp":-1}`),
		"exp zero":                forged(tokenHead, `{"sub":"42","exp":0}`),
		"exp in hexadecimal":      forged(tokenHead, `{"sub":"42","exp":0xF4865700}`),
		"exp a date":              forged(tokenHead, `{"sub":"42","exp":"2100-01-01T00:00:00Z"}`),
		"EXP":                     forged(tokenHead, `{"sub":"42","EXP":`+year2100+`}`),
		"exp twice, the last old": forged(tokenHead, `{"sub":"42","exp":`+year2100+`,"exp":1}`),
		"exp old, EXP new":        forged(tokenHead, `{"sub":"42","exp":1,"EXP":`+year2100+`}`),
		"nbf in the future":       forged(tokenHead, `{"sub":"42","exp":`+year2100+`,"nbf":4102444700}`),
		"nbf a text":              forged(tokenHead, `{"sub":"42","exp":`+year2100+`,"nbf":"1"}`),
		"nbf huge":                forged(tokenHead, `{"sub":"42","exp":`+year2100+`,"nbf":1e300}`),
		"nbf null":                forged(tokenHead, `{"sub":"42","exp":`+year2100+`,"nbf":null}`),
		"sub a list":              forged(tokenHead, `{"sub":["42"],"exp":`+year2100+`}`),
		"sub null":                forged(tokenHead, `{"sub":null,"exp":`+year2100+`}`),
		"sub empty":               forged(tokenHead, `{"sub":"","exp":`+year2100+`}`),
		"sub of spaces":           forged(tokenHead, `{"sub":" ","exp":`+year2100+`}`),
		"sub with a NUL":          forged(tokenHead, `{"sub":"42\u0000","exp":`+year2100+`}`),
		"sub not UTF-8":           forged(tokenHead, "{\"sub\":\"42\xff\",\"exp\":"+year2100+"}"),
		"SUB":                     forged(tokenHead, `{"SUB":"42","exp":`+year2100+`}`),
	})
}

func TestUnusualTokensAreTaken(t *testing.T) {
	for name, token := range map[string]string{
		"good":                    forged(tokenHead, tokenBody),
		"exp with a fraction":     forged(tokenHead, `{"sub":"42","exp":4102444800.75}`),
		"exp with an exponent":    forged(tokenHead, `{"sub":"42","exp":4.1024448e9}`),
		"exp twice, the last new": forged(tokenHead, `{"sub":"42","exp":1,"exp":`+year2100+`}`),
		"nbf in the past":         forged(tokenHead, `{"sub":"42","exp":`+year2100+`,"nbf":1}`),
		"other claims":            forged(tokenHead, `{"sub":"42","exp":`+year2100+`,"aud":5,"iss":{},"iat":"x"}`),
		"other header fields":     forged(`{"alg":"HS256","kid":"../../etc/passwd","jku":"http://127.0.0.1:1/"}`, tokenBody),
	} {
		if who, err := testKeys.verify(token); err != nil || who.User != "42" {
			t.Errorf("%s: user %q, %v", name, who.User, err)
		}
	}
}

// TestTokenErrorsAreForClients: they name nothing that only an operator or a Go
// programmer knows.
func TestTokenErrorsAreForClients(t *testing.T) {
	for _, err := range []error{errNoToken, errLongToken, errExpired, errNoExpiry, errUnsigned, errBadToken} {
		for _, word := range []string{"api-key", "API key", "Config", "HS256", "TOCSIN", "--"} {
			if strings.Contains(err.Error(), word) {
				t.Errorf("%q has %q", err, word)
			}
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
		if who, err := testKeys.authenticate(r); (err == nil) != c.ok || c.ok != (who.User == "42") {
			t.Errorf("%s, %s: user %q, %v", c.query, c.header, who.User, err)
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
		who, err := testKeys.verify(token)
		if err != nil {
			return
		}
		user := who.User
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
