//go:build linux

package scenario

import (
	"net/url"
	"strings"
)

// withTopic has the connections of a URL subscribe to a topic, unless the URL
// names topics itself. It is not parsed for that, because of the {n} in it.
func withTopic(raw, topic string) string {
	_, query, has := strings.Cut(raw, "?")
	sep := "?"
	if has {
		sep = "&"
	}
	if strings.HasPrefix(query, "topics=") || strings.Contains(query, "&topics=") {
		return raw
	}
	return raw + sep + "topics=" + url.QueryEscape(topic)
}

// withUser has the connections of a URL log in as user, unless the URL does
// that itself, and returns the user that counts.
func withUser(raw, user string) (string, string) {
	base, query, _ := strings.Cut(raw, "?")
	for pair := range strings.SplitSeq(query, "&") {
		name, value, _ := strings.Cut(pair, "=")
		if name == "user" {
			if plain, err := url.QueryUnescape(value); err == nil {
				value = plain
			}
			return raw, value
		}
		if name == "token" {
			return raw, user
		}
	}
	escaped := strings.NewReplacer("%7Bn%7D", "{n}").Replace(url.QueryEscape(user))
	return base + "?" + strings.TrimPrefix(query+"&user="+escaped, "&"), user
}

// withHost returns a URL with another host and port.
func withHost(raw, host string) string {
	at := strings.Index(raw, "://")
	if at < 0 {
		return raw
	}
	at += len("://")
	rest := strings.IndexAny(raw[at:], "/?")
	if rest < 0 {
		return raw[:at] + host
	}
	return raw[:at] + host + raw[at+rest:]
}
