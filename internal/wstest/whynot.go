package wstest

import (
	"encoding/base64"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// Parts of regular expressions: RFC 9110 section 5.6.
const (
	tchar = "[!#$%&'*+.^_`|~0-9A-Za-z-]"
	tokn  = tchar + "+"
	ows   = "[ \t]*"
	param = ows + ";" + ows + tokn + "(" + ows + "=" + ows + "(" + tokn + `|"(\\?` + tchar + `)+"))?`
)

var (
	requestLine = regexp.MustCompile(`^GET ((?i:https?)://([^/?]*))?([^?]*)(\?.*)? HTTP/1\.[1-9]$`)
	plainLine   = regexp.MustCompile(`^[!"$-~]+ [!"$-~]+ [!"$-~]+$`)
	fieldLine   = regexp.MustCompile("^(" + tokn + "):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*?)[ \t]*$")
	hostAndPort = regexp.MustCompile(`^([A-Za-z0-9._~%!$&'()*+,;=-]+|\[([0-9A-Fa-f:.]+)\])(:[0-9]*)?$`)
	element     = map[string]*regexp.Regexp{
		"connection":               regexp.MustCompile("^" + tokn + "$"),
		"upgrade":                  regexp.MustCompile("^" + tokn + "(/" + tokn + ")?$"),
		"sec-websocket-protocol":   regexp.MustCompile("^" + tokn + "$"),
		"sec-websocket-extensions": regexp.MustCompile("^" + tokn + "(" + param + ")*$"),
	}
)

// WhyNot says, in other words than the server, why request may not be upgraded
// at /ws, or "" if it has to be: RFC 9110, 9112, RFC 6455 section 4.2.1 and the
// limits. What stands behind the head is taken for frames.
func WhyNot(request string) string {
	text, _, ended := strings.Cut(request, "\r\n\r\n")
	lines := strings.Split(text, "\r\n")
	if !ended || len(text)+4 > 16<<10 || len(lines) > 65 {
		return "the head is too long or has no end"
	}
	m := requestLine.FindStringSubmatch(lines[0])
	if m == nil || !plainLine.MatchString(lines[0]) || len(lines[0])+2 > 8<<10 {
		return "of its request line"
	}
	absolute, authority, path := m[1] != "", m[2], m[3]
	if absolute && path == "" {
		path = "/"
	}
	if plain, err := url.PathUnescape(path); err != nil || plain != "/ws" || path[0] != '/' {
		return "of its path"
	}
	fields := map[string][]string{}
	for _, line := range lines[1:] {
		m := fieldLine.FindStringSubmatch(line)
		if m == nil || len(line)+2 > 8<<10 {
			return "of the line " + line
		}
		name := strings.ToLower(m[1])
		fields[name] = append(fields[name], m[2])
	}
	return whyNotFields(fields, absolute, authority)
}

// HasHost reports whether s is a host, with a port or not.
func HasHost(s string) bool {
	m := hostAndPort.FindStringSubmatch(s)
	return m != nil && (m[2] == "" || net.ParseIP(m[2]) != nil)
}

// IsElement reports whether e may stand in the list field of that lower-case
// name: connection, upgrade, sec-websocket-protocol or sec-websocket-extensions.
func IsElement(name, e string) bool { return element[name].MatchString(e) }

func whyNotFields(fields map[string][]string, absolute bool, authority string) string {
	one := func(name string) string {
		if len(fields[name]) != 1 {
			return ""
		}
		return fields[name][0]
	}
	list := map[string][]string{}
	for name, valid := range element {
		for e := range strings.SplitSeq(strings.Join(fields[name], ","), ",") {
			if e = strings.Trim(e, " \t"); e == "" {
				continue
			}
			if !valid.MatchString(e) {
				return "of an element of " + name
			}
			list[name] = append(list[name], e)
		}
	}
	has := func(name, word string) bool {
		return slices.ContainsFunc(list[name], func(e string) bool { return strings.ToLower(e) == word && len(e) == len(word) })
	}
	key, err := base64.StdEncoding.Strict().DecodeString(one("sec-websocket-key"))
	switch {
	case len(fields["host"]) != 1, !HasHost(one("host")) && (!absolute || one("host") != ""), absolute && !HasHost(authority):
		return "of its host"
	case !has("upgrade", "websocket"):
		return "of its Upgrade"
	case !has("connection", "upgrade"):
		return "of its Connection"
	case err != nil || len(key) != 16 || len(one("sec-websocket-key")) != 24:
		return "of its key"
	case one("sec-websocket-version") != "13":
		return "of its version"
	case fields["transfer-encoding"] != nil || fields["content-length"] != nil && (strings.Trim(one("content-length"), "0") != "" || one("content-length") == ""):
		return "it may have a body"
	case fields["sec-websocket-protocol"] != nil && list["sec-websocket-protocol"] == nil,
		fields["sec-websocket-extensions"] != nil && list["sec-websocket-extensions"] == nil:
		return "a list is empty"
	}
	return ""
}
