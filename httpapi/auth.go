package httpapi

import (
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
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

// authenticate returns the key that r carries. Its time depends on neither the
// keys nor how much of one was guessed: equal-sized hashes are compared, and
// all of them.
func (a *api) authenticate(w http.ResponseWriter, r *http.Request) (*apiKey, error) {
	given := r.Header.Get("X-API-Key")
	if given == "" {
		scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		if strings.EqualFold(scheme, "Bearer") {
			given = strings.TrimSpace(token)
		}
	}
	reason := "missing"
	if given != "" {
		reason = "wrong"
		hash := sha256.Sum256([]byte(given))
		found := -1
		for i := range a.keys {
			found = subtle.ConstantTimeSelect(subtle.ConstantTimeCompare(hash[:], a.keys[i].hash[:]), i, found)
		}
		if found >= 0 {
			return &a.keys[found], nil
		}
	}
	a.metrics.unauthorized.WithLabelValues(reason).Inc()
	w.Header().Set("WWW-Authenticate", `Bearer realm="tocsin"`)
	return nil, refusef(http.StatusUnauthorized, "The API key is %s: send it as X-API-Key or as a Bearer token.", reason)
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
	p := refusef(http.StatusTooManyRequests, "This key made more than %d requests a second, see api-rate.", k.limit.Burst())
	p.retry = wait.Round(time.Millisecond)
	return p
}
