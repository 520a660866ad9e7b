package main

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

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
	weakKey   = 16               // bytes; a shorter key can be guessed from one token
	algorithm = "HS256"
)

func (k *keyring) check() error {
	for _, key := range k.APIKey {
		if key == "" || strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return usagef("api-key must be printable ASCII without spaces")
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
	errUnsigned  = errors.New("the token is not signed with HS256 and an API key of this server")
	errBadToken  = errors.New("the token is not a JSON Web Token with the claims sub and exp")
)

// authenticate is the server's Config.Auth. Any goroutine calls it; it does
// not block.
func (k *keyring) authenticate(r *http.Request) (user string, err error) {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		token = r.URL.Query().Get("token")
	}
	return k.verify(strings.TrimSpace(token))
}

func (k *keyring) verify(token string) (user string, err error) {
	switch {
	case token == "":
		return "", errNoToken
	case len(token) > maxToken:
		return "", errLongToken
	}
	var keys jwt.VerificationKeySet
	for _, key := range k.APIKey {
		keys.Keys = append(keys.Keys, []byte(key))
	}
	var claims jwt.RegisteredClaims
	_, err = jwt.ParseWithClaims(token, &claims,
		func(*jwt.Token) (any, error) { return keys, nil },
		jwt.WithValidMethods([]string{algorithm}), jwt.WithExpirationRequired(),
		jwt.WithLeeway(leeway), jwt.WithStrictDecoding())
	switch {
	case errors.Is(err, jwt.ErrTokenSignatureInvalid):
		return "", errUnsigned
	case errors.Is(err, jwt.ErrTokenExpired):
		return "", errExpired
	case errors.Is(err, jwt.ErrTokenRequiredClaimMissing):
		return "", errNoExpiry
	case err != nil, claims.Subject == "":
		return "", errBadToken
	}
	if bad := wire.CheckUser(claims.Subject); bad != nil {
		return "", errors.New("the token's sub: " + bad.Message)
	}
	return claims.Subject, nil
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
	if err := c.check(); err != nil {
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
