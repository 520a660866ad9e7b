package httpapi

import (
	"crypto/sha256"
	"crypto/subtle"
	"strings"
	"time"

	"golang.org/x/time/rate"
)

// apiKey is a key, as its hash, and what it may use up.
type apiKey struct {
	hash  [sha256.Size]byte
	limit *rate.Limiter // nil: no limit
}

// newKeys returns the keys, and what stands for all of them if there are none.
func newKeys(keys []string, perSecond int) (list []apiKey, open apiKey) {
	limiter := func() *rate.Limiter {
		if perSecond <= 0 {
			return nil
		}
		return rate.NewLimiter(rate.Limit(perSecond), perSecond)
	}
	for _, k := range keys {
		list = append(list, apiKey{hash: sha256.Sum256([]byte(k)), limit: limiter()})
	}
	return list, apiKey{limit: limiter()}
}

// authenticate returns the key that the request carries. Its time depends on neither the
// keys nor how much of one was guessed: equal-sized hashes are compared, and
// all of them.
func (x *exchange) authenticate() (*apiKey, error) {
	given := x.r.Header.Get("X-API-Key")
	if given == "" {
		scheme, token, _ := strings.Cut(x.r.Header.Get("Authorization"), " ")
		if strings.EqualFold(scheme, "Bearer") {
			given = strings.TrimSpace(token)
		}
	}
	reason := "missing"
	if given != "" {
		reason = "wrong"
		hash := sha256.Sum256([]byte(given))
		found := -1
		for i := range x.api.keys {
			found = subtle.ConstantTimeSelect(subtle.ConstantTimeCompare(hash[:], x.api.keys[i].hash[:]), i, found)
		}
		if found >= 0 {
			return &x.api.keys[found], nil
		}
	}
	x.api.metrics.unauthorized.WithLabelValues(reason).Inc()
	x.w.Header().Set("WWW-Authenticate", `Bearer realm="tocsin"`)
	return nil, refusef(codeUnauthorized, "The API key is %s: send it as X-API-Key or as a Bearer token.", reason)
}

// take spends one request of the key's rate.
func (k *apiKey) take() error {
	if k.limit == nil {
		return nil
	}
	reserved := k.limit.Reserve()
	wait := reserved.Delay()
	if wait == 0 {
		return nil
	}
	reserved.Cancel()
	p := refusef(codeRate, "This key made more than %d requests a second, see api-rate.", k.limit.Burst())
	p.retry = wait.Round(time.Millisecond)
	return p
}

// owe spends n requests more, though they are not there: the key's next
// request is refused until they are made up for.
func (k *apiKey) owe(n int) {
	if k.limit == nil {
		return
	}
	now := time.Now()
	for n > 0 {
		part := min(n, k.limit.Burst())
		k.limit.ReserveN(now, part)
		n -= part
	}
}
