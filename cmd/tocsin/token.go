package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/golang-jwt/jwt/v5"

	"github.com/tocsin-push/tocsin/server"
	"github.com/tocsin-push/tocsin/wire"
)

// keyring has the API keys. They open the API, and sign the tokens that let
// clients in: HS256 JSON Web Tokens with the claims sub, the user, and exp.
type keyring struct {
	APIKey []string `type:"string" placeholder:"KEY" help:"Opens the API, and signs the tokens of clients. Repeatable: all are accepted, the first one signs."`
}

const (
	maxToken  = 4 << 10          // bytes
	leeway    = 30 * time.Second // of the clocks of who signs and who checks
	minKey    = 16               // bytes; a shorter key can be guessed from one token
	maxDate   = 253402300799     // the last second of the year 9999; more is not meant in seconds
	algorithm = "HS256"
)

// check refuses keys that cannot be sent as a header and, where keys sign
// tokens, those that are too short for that.
func (k *keyring) check(signs bool) error {
	for _, key := range k.APIKey {
		switch {
		case key == "" || strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r > '~' }):
			return usagef("api-key must be printable ASCII without spaces")
		case signs && len(key) < minKey:
			return usagef("api-key has %d bytes, it must have at least %d: whoever holds a token can guess a short one; openssl rand -hex 32 makes a good one",
				len(key), minKey)
		}
	}
	return nil
}

// Errors of tokens, as their clients read them. None repeats the token.
var (
	errNoToken   = errors.New("a token is missing: give it as ?token= or as a Bearer token")
	errLongToken = fmt.Errorf("the token is longer than %d bytes", maxToken)
	errExpired   = errors.New("the token expired")
	errNoExpiry  = errors.New("the token has no exp claim")
	errUnsigned  = errors.New("the token's signature is not valid here")
	errBadToken  = errors.New("the token is not a JSON Web Token with the claims sub and exp")
)

// authenticate is the server's Config.Auth. Any goroutine calls it; it does
// not block.
func (k *keyring) authenticate(r *http.Request) (server.Identity, error) {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		token = r.URL.Query().Get("token")
	}
	return k.verify(strings.TrimSpace(token))
}

// verify returns who a token is for. A connection ends when its token would no
// longer be taken.
func (k *keyring) verify(token string) (who server.Identity, err error) {
	switch {
	case token == "":
		return who, errNoToken
	case len(token) > maxToken:
		return who, errLongToken
	case strings.ContainsAny(token, "\r\n"):
		return who, errBadToken // encoding/base64 would skip them
	}
	var keys jwt.VerificationKeySet
	for _, key := range k.APIKey {
		keys.Keys = append(keys.Keys, []byte(key))
	}
	var claims claims
	_, err = jwt.ParseWithClaims(token, &claims,
		func(t *jwt.Token) (any, error) {
			if _, ok := t.Header["crit"]; ok {
				return nil, errBadToken // RFC 7515 section 4.1.11: no extension is understood
			}
			return keys, nil
		},
		jwt.WithValidMethods([]string{algorithm}), jwt.WithExpirationRequired(),
		jwt.WithLeeway(leeway), jwt.WithStrictDecoding())
	switch {
	case errors.Is(err, jwt.ErrTokenSignatureInvalid):
		return who, errUnsigned
	case errors.Is(err, jwt.ErrTokenExpired):
		return who, errExpired
	case errors.Is(err, jwt.ErrTokenRequiredClaimMissing):
		return who, errNoExpiry
	case err != nil, claims.Subject == "":
		return who, errBadToken
	}
	if bad := wire.CheckUser(claims.Subject); bad != nil {
		return who, errors.New("the token's sub: " + bad.Message)
	}
	return server.Identity{User: claims.Subject, Expires: claims.ExpiresAt.Add(leeway)}, nil
}

// claims are those of a token that count here. Their names are read in their
// own case, their texts are UTF-8, and their dates are numbers: encoding/json and
// [jwt.NumericDate] would take more.
type claims struct{ jwt.RegisteredClaims }

// UnmarshalJSON implements [json.Unmarshaler]. Of two claims of one name it
// takes the last, RFC 7519 section 4.
func (c *claims) UnmarshalJSON(text []byte) (err error) {
	var named map[string]json.RawMessage
	if !utf8.Valid(text) {
		return errBadToken
	}
	if err := json.Unmarshal(text, &named); err != nil {
		return err
	}
	if sub, ok := named["sub"]; ok {
		if err := json.Unmarshal(sub, &c.Subject); err != nil {
			return err
		}
		// encoding/json puts U+FFFD for half a surrogate pair, so two names would be one.
		if strings.ContainsRune(c.Subject, utf8.RuneError) {
			return errBadToken
		}
	}
	if c.ExpiresAt, err = numericDate(named["exp"]); err != nil {
		return err
	}
	c.NotBefore, err = numericDate(named["nbf"])
	return err
}

// numericDate returns a date in seconds, RFC 7519 section 2, or nil if there is
// none.
func numericDate(text json.RawMessage) (*jwt.NumericDate, error) {
	if len(text) == 0 {
		return nil, nil
	}
	var seconds *float64
	if err := json.Unmarshal(text, &seconds); err != nil {
		return nil, err
	}
	if seconds == nil || *seconds < 0 || *seconds > maxDate {
		return nil, errBadToken
	}
	return jwt.NewNumericDate(time.UnixMilli(int64(*seconds * 1000))), nil
}

func (k *keyring) sign(user string, ttl time.Duration) (string, error) {
	claims := jwt.RegisteredClaims{Subject: user, ExpiresAt: jwt.NewNumericDate(time.Now().Add(ttl))}
	return jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString([]byte(k.APIKey[0]))
}

type tokenCmd struct {
	User    string        `required:"" placeholder:"NAME" help:"User that the token is for."`
	TTL     time.Duration `type:"duration" min:"1s" max:"87600h" default:"1h" help:"Time until the token expires."`
	keyring `group:"who" embed:""`
}

// Run prints a token.
func (c *tokenCmd) Run(std streams) error {
	if len(c.APIKey) == 0 {
		return usagef("api-key is missing: a token is signed with the server's")
	}
	if err := c.check(true); err != nil {
		return err
	}
	if bad := wire.CheckUser(c.User); bad != nil {
		return usagef("user is %q: %s", c.User, bad.Message)
	}
	token, err := c.sign(c.User, c.TTL)
	if err == nil {
		_, err = fmt.Fprintln(std.out, token)
	}
	return err
}
