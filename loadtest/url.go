//go:build linux

package main

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
