package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"github.com/tocsin-push/tocsin/server"
)

// settings are what a server can be told. Each is a flag, a variable and a key
// in the file; docs/configuration.md tells them one by one.
type settings struct {
	Listen    string `group:"where" type:"address" default:"127.0.0.1:8080" help:"Where WebSocket clients connect; :8080 for all interfaces."`
	Path      string `group:"where" type:"urlpath" default:"/ws" help:"Path of the WebSocket upgrade."`
	APIListen string `group:"where" type:"address" default:"127.0.0.1:8081" help:"Where backends publish and operators look; keep it away from clients."`

	Dev     bool `group:"who" help:"Let everybody in as ?user=, let clients publish, serve a demo page. For a machine of your own."`
	keyring `group:"who" embed:""`

	MaxConnections int   `group:"clients" type:"count" min:"1" max:"1073741822" word:"auto" default:"auto" help:"Connections at once; more get 503. auto: what the descriptor limit allows."`
	MaxUserConns   int   `group:"clients" type:"count" min:"1" max:"1073741824" default:"1000" help:"Connections of one user; more are closed with 3504."`
	MaxTopics      int   `group:"clients" type:"count" min:"1" max:"32768" default:"128" help:"Topics of one connection."`
	MaxMessage     int   `group:"clients" type:"size" min:"1" max:"1GiB" default:"64KiB" help:"Bytes of a message from a client; more closes it with 1009."`
	MaxFrames      int   `group:"clients" type:"count" min:"1" max:"1073741824" default:"128" help:"Frames of a message from a client; more closes it with 1008."`
	MaxControl     int   `group:"clients" type:"count" min:"1" max:"100" default:"10" help:"Control frames a second from a client; more closes it with 1008."`
	MaxOutbox      int   `group:"clients" type:"size" min:"1" max:"1GiB" default:"64KiB" help:"Bytes waiting for one connection, then overflow decides."`
	OutboxBudget   int64 `group:"clients" type:"size" min:"1" max:"1024TiB" word:"auto" default:"auto" help:"Bytes waiting for all connections; the longest are cut first. auto: a quarter of the memory limit."`

	Overflow []server.OverflowRule `group:"clients" placeholder:"PREFIX=POLICY" help:"What a full outbox means for topics that start with PREFIX: disconnect (the default), drop_oldest or latest. Repeatable; the longest prefix counts."`

	MaxPublish        int           `group:"publish" type:"size" min:"1" max:"1GiB" word:"auto" default:"auto" help:"Bytes of a published message; more gets 413. auto: max-message."`
	PublishBudget     int64         `group:"publish" type:"size" min:"1" max:"1024TiB" default:"64MiB" help:"Bytes published and not yet delivered; more gets 429."`
	IdempotencyBudget int64         `group:"publish" type:"size" min:"1" max:"1024TiB" default:"32MiB" help:"Bytes of remembered idempotency keys; over it the oldest are forgotten early."`
	LingerBudget      int64         `group:"publish" type:"size" min:"1" max:"1024TiB" default:"32MiB" help:"Bytes of topics that linger; over it those that linger longest are forgotten early."`
	APIRate           int           `group:"publish" type:"count" min:"1" max:"1000000" word:"off" default:"off" help:"Requests a second with one API key; more gets 429."`
	APIMaxBatch       int           `group:"publish" type:"size" min:"1" max:"1GiB" default:"8MiB" help:"Bytes of a batch; more gets 413."`
	APIMaxBatchItems  int           `group:"publish" type:"count" min:"1" max:"1000000" default:"10000" help:"Messages of a batch; more gets 413."`
	APIMaxConnections int           `group:"publish" type:"count" min:"1" max:"1073741824" default:"1000" help:"Connections of the API at once; over it idle ones are closed, or else new ones."`
	APITimeout        time.Duration `group:"publish" type:"duration" min:"10ms" max:"24h" default:"10s" help:"An API request's head, and its body, from first to last byte; and the sending of an answer."`

	HandshakeTimeout time.Duration `group:"times" type:"duration" min:"10ms" max:"24h" default:"5s" help:"Accept to the end of the request's head."`
	AuthTimeout      time.Duration `group:"times" type:"duration" min:"10ms" max:"24h" default:"8s" help:"The head to the answer, authentication included."`
	MessageTimeout   time.Duration `group:"times" type:"duration" min:"10ms" max:"24h" default:"10s" help:"First to last byte of a message from a client."`
	WriteTimeout     time.Duration `group:"times" type:"duration" min:"10ms" max:"24h" default:"10s" help:"An outbox that does not move."`
	OutboxAge        time.Duration `group:"times" type:"duration" min:"10ms" max:"24h" default:"30s" help:"Age of the oldest byte in an outbox that does move."`
	PingInterval     time.Duration `group:"times" type:"duration" min:"1s" max:"24h" word:"off" default:"25s" help:"Silence before a ping; off: no pings."`
	PongTimeout      time.Duration `group:"times" type:"duration" min:"10ms" max:"24h" default:"8s" help:"A ping to the first byte after it."`
	CloseTimeout     time.Duration `group:"times" type:"duration" min:"10ms" max:"24h" default:"5s" help:"A Close frame to the end of its socket."`
	TopicLinger      time.Duration `group:"times" type:"duration" min:"1s" max:"24h" word:"off" default:"2m" help:"The numbering of a topic goes on for this long without subscribers."`
	Drain            time.Duration `group:"times" type:"duration" min:"10ms" max:"24h" word:"auto" default:"auto" help:"A shutdown spreads the closes over this. auto: 20s, with dev 1s."`
	ReturnWindow     time.Duration `group:"times" type:"duration" min:"10ms" max:"24h" word:"auto" default:"auto" help:"A shutdown tells clients to come back spread over this. auto: as long as drain."`
	DrainDelay       time.Duration `group:"times" type:"duration" min:"10ms" max:"24h" word:"off" default:"off" help:"/readyz says no for this long before a shutdown starts, so that a load balancer sees it."`

	Shards      int `group:"engine" type:"count" min:"1" max:"4096" word:"auto" default:"auto" help:"Groups that connections are served in. auto: 4 for each CPU."`
	Workers     int `group:"engine" type:"count" min:"1" max:"4096" word:"auto" default:"auto" help:"Shards served at once. auto: 1 for each CPU."`
	HookWorkers int `group:"engine" type:"count" min:"1" max:"1048576" word:"auto" default:"auto" help:"Authentications at once. auto: 64 for each CPU."`

	LogFormat string `group:"log" type:"choice" of:"auto,text,json" default:"auto" help:"text, json, or auto: text on a terminal, json elsewhere."`
	LogLevel  string `group:"log" type:"choice" of:"debug,info,warn,error" default:"info" help:"debug, info, warn or error."`
}

var settingGroups = []kong.Group{
	{Key: "where", Title: "Addresses:"},
	{Key: "who", Title: "Identity:"},
	{Key: "clients", Title: "Limits of clients:"},
	{Key: "publish", Title: "Limits of backends:"},
	{Key: "times", Title: "Times:"},
	{Key: "engine", Title: "Engine:"},
	{Key: "log", Title: "Log:"},
	{Key: "api", Title: "The server to talk to:"},
	{Key: "client", Title: "The server to listen to:"},
}

// serverConfig returns the settings that are package server's.
func (s *settings) serverConfig(log *slog.Logger) server.Config {
	cfg := server.Config{
		Path: s.Path, Dev: s.Dev, Overflow: s.Overflow,
		Shards: s.Shards, Workers: s.Workers, HookWorkers: s.HookWorkers,
		MaxConnections: s.MaxConnections, MaxUserConns: s.MaxUserConns, MaxTopics: s.MaxTopics,
		MaxMessage: s.MaxMessage, MaxFrames: s.MaxFrames, MaxControl: s.MaxControl,
		MaxOutbox: s.MaxOutbox, MaxPublish: s.maxPublish(),
		OutboxBudget: s.OutboxBudget, PublishBudget: s.PublishBudget, IdempotencyBudget: s.IdempotencyBudget, LingerBudget: s.LingerBudget,
		HandshakeTimeout: s.HandshakeTimeout, AuthTimeout: s.AuthTimeout,
		MessageTimeout: s.MessageTimeout, WriteTimeout: s.WriteTimeout, OutboxAge: s.OutboxAge,
		PingInterval: s.PingInterval, PongTimeout: s.PongTimeout,
		TopicLinger:  s.TopicLinger,
		CloseTimeout: s.CloseTimeout, Drain: s.drain(), ReturnWindow: s.ReturnWindow,
		Logger: log,
	}
	if s.PingInterval == 0 {
		cfg.PingInterval = -1 // off
	}
	if s.TopicLinger == 0 {
		cfg.TopicLinger = -1 // off
	}
	if !s.Dev {
		cfg.Auth = s.authenticate
	}
	return cfg
}

// drain returns Drain, or what auto means.
func (s *settings) drain() time.Duration {
	switch {
	case s.Drain != 0:
		return s.Drain
	case s.Dev:
		return time.Second
	}
	return 20 * time.Second
}

// spare is what a shutdown may take on top of what is set, twice: for clients,
// and for requests of the API.
const spare = 2 * time.Second

// longestStop returns the longest time from a signal to the end of the process.
func (s *settings) longestStop() time.Duration {
	return s.DrainDelay + s.drain() + s.CloseTimeout + 2*spare
}

func (s *settings) maxPublish() int {
	if s.MaxPublish == 0 {
		return s.MaxMessage
	}
	return s.MaxPublish
}

// check reports what no single setting is to blame for.
func (s *settings) check() error {
	if !s.Dev && len(s.APIKey) == 0 {
		return usagef("nobody could come in: set api-key (openssl rand -hex 32 makes one), or dev on a machine of your own")
	}
	return s.keyring.check(!s.Dev)
}

// badValue is a value that its setting cannot have.
type badValue struct{ key, value, want string }

func (e badValue) Error() string {
	return fmt.Sprintf("%s is %q, it must be %s", e.key, e.value, e.want)
}

// mapper gives kong a parser of one kind of value, which returns what is
// allowed if text is not. A word tag names what stands for the zero value:
// auto, or off, which 0 also means.
func mapper[T any](parse func(text string, tag *kong.Tag) (v T, want string, ok bool)) kong.MapperFunc {
	return func(ctx *kong.DecodeContext, target reflect.Value) error {
		token := ctx.Scan.Pop()
		if token.IsEOL() {
			return errors.New("its value is missing")
		}
		text, tag := token.String(), ctx.Value.Tag
		word := tag.Get("word")
		if word != "" && (text == word || word == "off" && (text == "0" || text == "0s")) {
			target.SetZero()
			return nil
		}
		v, want, ok := parse(text, tag)
		if !ok && word != "" {
			want += ", or " + word
		}
		if !ok {
			return badValue{ctx.Value.Name, text, want}
		}
		target.Set(reflect.ValueOf(v).Convert(target.Type()))
		return nil
	}
}

func parseCount(text string, tag *kong.Tag) (n int64, want string, ok bool) {
	least, _ := strconv.ParseInt(tag.Get("min"), 10, 64)
	most, _ := strconv.ParseInt(tag.Get("max"), 10, 64)
	n, err := strconv.ParseInt(strings.ReplaceAll(text, "_", ""), 10, 64)
	return n, fmt.Sprintf("a whole number from %d to %d", least, most), err == nil && n >= least && n <= most
}

func parseSize(text string, tag *kong.Tag) (n int64, want string, ok bool) {
	least, _ := parseBytes(tag.Get("min"))
	most, _ := parseBytes(tag.Get("max"))
	n, ok = parseBytes(text)
	return n, fmt.Sprintf("a size from %s to %s, like 65536, 64KiB or 1MiB", tag.Get("min"), tag.Get("max")), ok && n >= least && n <= most
}

// parseBytes returns what a size means: a whole number, and B, KiB, MiB, GiB or TiB.
func parseBytes(text string) (n int64, ok bool) {
	number := strings.TrimRight(text, "BKMGTi")
	shift, ok := map[string]int{"": 0, "B": 0, "KiB": 10, "MiB": 20, "GiB": 30, "TiB": 40}[strings.TrimSpace(text[len(number):])]
	n, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
	if err != nil || !ok || n > 1<<62>>shift {
		return 0, false
	}
	return n << shift, true
}

func parseDuration(text string, tag *kong.Tag) (d time.Duration, want string, ok bool) {
	least, _ := time.ParseDuration(tag.Get("min"))
	most, _ := time.ParseDuration(tag.Get("max"))
	d, err := time.ParseDuration(text)
	return d, fmt.Sprintf("a time from %s to %s, like 500ms, 10s or 2m", tag.Get("min"), tag.Get("max")), err == nil && d >= least && d <= most
}

func parseChoice(text string, tag *kong.Tag) (choice, want string, ok bool) {
	choices := strings.Split(tag.Get("of"), ",")
	return text, "one of " + strings.Join(choices, ", "), slices.Contains(choices, text)
}

// parseText takes any text, so that one that is missing is said to be missing.
func parseText(text string, _ *kong.Tag) (value, want string, ok bool) { return text, "", true }

func parseAddress(text string, _ *kong.Tag) (addr, want string, ok bool) {
	_, port, err := net.SplitHostPort(text)
	_, perr := strconv.ParseUint(port, 10, 16)
	return text, "HOST:PORT, or :PORT for all interfaces, with a port from 0 to 65535", err == nil && perr == nil
}

func parsePath(text string, _ *kong.Tag) (path, want string, ok bool) {
	u, err := url.ParseRequestURI(text)
	return text, "a path that starts with /", err == nil && strings.HasPrefix(text, "/") && u.RawQuery == "" && u.Path == text
}

func parseURL(text string, tag *kong.Tag) (addr, want string, ok bool) {
	u, err := url.Parse(text)
	return strings.TrimRight(text, "/"), "an address like " + tag.Default, err == nil && slices.Contains(strings.Split(tag.Get("of"), ","), u.Scheme) && u.Host != ""
}

func parseOverflow(text string, _ *kong.Tag) (rule server.OverflowRule, want string, ok bool) {
	at := strings.LastIndexByte(text, '=')
	if at >= 0 {
		rule = server.OverflowRule{Prefix: text[:at], Policy: server.Overflow(text[at+1:])}
	}
	switch rule.Policy {
	case server.Disconnect, server.DropOldest, server.Latest:
		ok = true
	}
	return rule, "PREFIX=POLICY, the policy disconnect, drop_oldest or latest", ok
}
