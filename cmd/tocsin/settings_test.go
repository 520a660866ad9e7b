package main

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/tocsin-push/tocsin/server"
)

// read parses a command line in which nothing runs.
func read(args ...string) (*cli, error) {
	var c cli
	from := newSources()
	parser, err := newParser(&c, from, streams{out: &bytes.Buffer{}, err: &bytes.Buffer{}})
	if err != nil {
		return nil, err
	}
	if _, err = parser.Parse(args); err != nil {
		return nil, from.explain(err)
	}
	return &c, nil
}

func writeFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tocsin.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFlagBeforeVariableBeforeFileBeforeDefault(t *testing.T) {
	file := "max-topics: 3\nmax-frames: 33\nmax-control: 5\n"
	for _, c := range []struct {
		name                     string
		args                     []string
		variable, file           string
		topics, control, fromEnv int
	}{
		{name: "default", topics: 128, control: 10},
		{name: "file", file: file, topics: 3, control: 5},
		{name: "variable", variable: "2", file: file, topics: 2, control: 5},
		{name: "flag", args: []string{"--max-topics=1"}, variable: "2", file: file, topics: 1, control: 5},
		{name: "flag apart", args: []string{"--max-topics", "1"}, variable: "wrong, and not looked at", topics: 1, control: 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.variable != "" {
				t.Setenv("TOCSIN_MAX_TOPICS", c.variable)
			}
			args := append([]string{"serve"}, c.args...)
			if c.file != "" {
				args = append(args, "--config", writeFile(t, c.file))
			}
			got, err := read(args...)
			if err != nil {
				t.Fatal(err)
			}
			if s := got.Serve; s.MaxTopics != c.topics || s.MaxControl != c.control {
				t.Errorf("max-topics %d, max-control %d", s.MaxTopics, s.MaxControl)
			}
		})
	}
}

func TestEverySourceTakesEveryKind(t *testing.T) {
	want := func(t *testing.T, s settings) {
		t.Helper()
		rules := []server.OverflowRule{{Prefix: "prices/", Policy: server.Latest}, {Prefix: "a=b", Policy: server.DropOldest}}
		if !s.Dev || !reflect.DeepEqual(s.APIKey, []string{"one", "two"}) || !reflect.DeepEqual(s.Overflow, rules) ||
			s.MaxMessage != 1<<20 || s.Drain != 90*time.Second || s.PingInterval != 0 || s.LogLevel != "debug" || s.Listen != ":80" || s.MaxConnections != 1000000 {
			t.Errorf("%+v", s)
		}
	}
	t.Run("flags", func(t *testing.T) {
		got, err := read("serve", "--dev", "--api-key=one", "--api-key=two", "--overflow=prices/=latest", "--overflow", "a=b=drop_oldest",
			"--max-message=1MiB", "--drain=1m30s", "--ping-interval=off", "--log-level=debug", "--listen=:80", "--max-connections=1_000_000")
		if err != nil {
			t.Fatal(err)
		}
		want(t, got.Serve.settings)
	})
	t.Run("variables", func(t *testing.T) {
		for name, value := range map[string]string{
			"DEV": "true", "API_KEY": "one,two", "OVERFLOW": "prices/=latest,a=b=drop_oldest", "MAX_MESSAGE": "1048576",
			"DRAIN": "90s", "PING_INTERVAL": "0s", "LOG_LEVEL": "debug", "LISTEN": ":80", "MAX_CONNECTIONS": "1000000",
		} {
			t.Setenv("TOCSIN_"+name, value)
		}
		got, err := read("serve")
		if err != nil {
			t.Fatal(err)
		}
		want(t, got.Serve.settings)
	})
	t.Run("file", func(t *testing.T) {
		t.Setenv("TOCSIN_CONFIG", writeFile(t, `# a comment
dev: true
api-key: [one, two]
overflow:
  - prices/=latest
  - a=b=drop_oldest
max-message: 1 MiB
drain: 1.5m
ping-interval: 0
log-level: debug
listen: ":80"
max-connections: 1000000
`))
		got, err := read("serve")
		if err != nil {
			t.Fatal(err)
		}
		want(t, got.Serve.settings)
	})
	t.Run("empty file", func(t *testing.T) {
		if _, err := read("serve", "--config", writeFile(t, "# nothing\n")); err != nil {
			t.Error(err)
		}
	})
}

func TestWrongSettingsSayWhatIsAllowed(t *testing.T) {
	for _, c := range []struct{ flag, value, want string }{
		{"max-topics", "0", "a whole number from 1 to 32768"},
		{"max-topics", "many", "a whole number from 1 to 32768"},
		{"max-topics", "", "a whole number from 1 to 32768"},
		{"max-topics", "auto", "a whole number from 1 to 32768"},
		{"max-topics", "9999999999999999999999", "a whole number from 1 to 32768"},
		{"max-connections", "-1", "a whole number from 1 to 1073741822, or auto"},
		{"max-message", "64KB", "a size from 1 to 1GiB, like 65536, 64KiB or 1MiB"},
		{"max-message", "2GiB", "a size from 1 to 1GiB, like 65536, 64KiB or 1MiB"},
		{"max-message", "99999999999TiB", "a size from 1 to 1GiB, like 65536, 64KiB or 1MiB"},
		{"outbox-budget", "iKB", "a size from 1 to 1024TiB, like 65536, 64KiB or 1MiB, or auto"},
		{"drain", "30", "a time from 10ms to 24h, like 500ms, 10s or 2m, or auto"},
		{"write-timeout", "0s", "a time from 10ms to 24h, like 500ms, 10s or 2m"},
		{"ping-interval", "-1s", "a time from 1s to 24h, like 500ms, 10s or 2m, or off"},
		{"listen", "8080", "HOST:PORT, or :PORT for all interfaces, with a port from 0 to 65535"},
		{"listen", "127.0.0.1:65536", "HOST:PORT, or :PORT for all interfaces, with a port from 0 to 65535"},
		{"api-listen", "localhost:http", "HOST:PORT, or :PORT for all interfaces, with a port from 0 to 65535"},
		{"path", "ws", "a path that starts with /"},
		{"path", "/ws?x", "a path that starts with /"},
		{"overflow", "news=slow", "PREFIX=POLICY, the policy disconnect, drop_oldest or latest"},
		{"overflow", "news", "PREFIX=POLICY, the policy disconnect, drop_oldest or latest"},
		{"log-format", "xml", "one of auto, text, json"},
		{"log-level", "loud", "one of debug, info, warn, error"},
	} {
		_, err := read("serve", "--"+c.flag+"="+c.value)
		want := c.flag + ` is "` + c.value + `", it must be ` + c.want
		if err == nil || err.Error() != want {
			t.Errorf("--%s=%s:\n%v, want\n%s", c.flag, c.value, err, want)
		}
	}
}

func TestWrongVariablesAndFilesSayWhere(t *testing.T) {
	t.Run("variable", func(t *testing.T) {
		t.Setenv("TOCSIN_MAX_TOPICS", "x")
		if _, err := read("serve"); err == nil || !strings.HasPrefix(err.Error(), `max-topics is "x" in $TOCSIN_MAX_TOPICS, it must be `) {
			t.Error(err)
		}
	})
	t.Run("variable that is yes or no", func(t *testing.T) {
		t.Setenv("TOCSIN_DEV", "maybe")
		if _, err := read("serve"); err == nil || !strings.HasPrefix(err.Error(), "dev in $TOCSIN_DEV: ") {
			t.Error(err)
		}
	})
	for _, c := range []struct{ file, want string }{
		{"dev: true\nmax-topics: x\n", ` line 2, it must be a whole number from 1 to 32768`},
		{"dev: true\n\nmax_topics: 5\n", ` line 3: there is no setting "max_topics", is max-topics meant?`},
		{"max-conections: 5\n", ` line 1: there is no setting "max-conections", is max-connections meant?`},
		{"entirely-else: 5\n", ` line 1: there is no setting "entirely-else", see tocsin serve --help`},
		{"user: 5\n", ` line 1: there is no setting "user", `},
		{"config: x\n", ` line 1: there is no setting "config", `},
		{"max-topics: 5\nmax-topics: 6\n", `max-topics`},
		{"max-topics: [5]\n", ` line 1: max-topics takes one value`},
		{"max-topics: {a: 5}\n", ` line 1: max-topics takes one value or a list of them`},
		{"- dev\n", ` line 1: settings are written as key: value`},
		{"dev: [\n", ` is not YAML: `},
		{"dev: maybe\n", `but got "maybe"`},
	} {
		path := writeFile(t, c.file)
		_, err := read("serve", "--config", path)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v", c.file, err)
		}
	}
	if _, err := read("serve", "--config", "/no/such/file"); err == nil || err.Error() != "config cannot be read: open /no/such/file: no such file or directory" {
		t.Error(err)
	}
}

func TestMisspeltVariablesAreRefused(t *testing.T) {
	for _, c := range []struct{ variable, want string }{
		{"TOCSIN_MAX_TOPIC=5", "there is no variable TOCSIN_MAX_TOPIC, is TOCSIN_MAX_TOPICS meant?"},
		{"TOCSIN_APIKEY=K", "there is no variable TOCSIN_APIKEY, is TOCSIN_API_KEY meant?"},
		{"TOCSIN_CONFG=x", "there is no variable TOCSIN_CONFG, is TOCSIN_CONFIG meant?"},
		{"TOCSIN_ENTIRELY_ELSE=x", "there is no variable TOCSIN_ENTIRELY_ELSE, see tocsin serve --help"},
		{"TOCSIN_PORT=8080", "there is no variable TOCSIN_PORT, "},
		{"TOCSIN_MAX_TOPICS=5", ""},
		{"TOCSINMAX=5", ""},
		{"tocsin_x=5", ""},
		// Kubernetes, for services called tocsin and tocsin-api:
		{"TOCSIN_SERVICE_HOST=10.0.0.11", ""},
		{"TOCSIN_SERVICE_PORT=8080", ""},
		{"TOCSIN_SERVICE_PORT_HTTP=8080", ""},
		{"TOCSIN_PORT=tcp://10.0.0.11:8080", ""},
		{"TOCSIN_PORT_8080_TCP=tcp://10.0.0.11:8080", ""},
		{"TOCSIN_PORT_8080_TCP_PROTO=tcp", ""},
		{"TOCSIN_PORT_8080_TCP_PORT=8080", ""},
		{"TOCSIN_PORT_8080_TCP_ADDR=10.0.0.11", ""},
		{"TOCSIN_API_SERVICE_HOST=10.0.0.12", ""},
		{"TOCSIN_API_PORT_8081_TCP_ADDR=10.0.0.12", ""},
	} {
		t.Run(c.variable, func(t *testing.T) {
			name, value, _ := strings.Cut(c.variable, "=")
			t.Setenv(name, value)
			_, err := read("serve", "--dev")
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.HasPrefix(err.Error(), c.want)) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// kebab turns the name of a Config field into that of its setting.
func kebab(field string) string {
	return strings.ToLower(regexp.MustCompile(`([a-z])([A-Z])`).ReplaceAllString(field, "$1-$2"))
}

// TestEveryServerLimitIsASetting: each number, time and word of server.Config
// has a setting of its name, and that is where its value goes.
func TestEveryServerLimitIsASetting(t *testing.T) {
	given := map[string]string{"path": "/x", "overflow": "a=latest"}
	byHand := map[string]bool{"Dev": true, "Bus": true, "Logger": true, "Auth": true}
	typ := reflect.TypeFor[server.Config]()
	var fields []reflect.StructField
	args := []string{"serve", "--dev"}
	for f := range typ.Fields() {
		if !f.IsExported() || byHand[f.Name] || f.Type.Kind() == reflect.Func {
			continue
		}
		fields = append(fields, f)
		value, ok := given[kebab(f.Name)]
		switch {
		case ok:
		case f.Type == reflect.TypeFor[time.Duration]():
			value = "17s"
		default:
			value = "17"
		}
		args = append(args, "--"+kebab(f.Name)+"="+value)
	}
	c, err := read(args...)
	if err != nil {
		t.Fatal(err)
	}
	cfg := reflect.ValueOf(c.Serve.serverConfig(nil))
	for _, f := range fields {
		switch v := cfg.FieldByIndex(f.Index); v.Interface().(type) {
		case time.Duration:
			if v.Int() != int64(17*time.Second) {
				t.Errorf("%s is %v", f.Name, v)
			}
		case string:
			if v.String() != "/x" {
				t.Errorf("%s is %v", f.Name, v)
			}
		case []server.OverflowRule:
			if v.Len() != 1 {
				t.Errorf("%s is %v", f.Name, v)
			}
		default:
			if v.Int() != 17 {
				t.Errorf("%s is %v", f.Name, v)
			}
		}
	}
}

func TestDefaultsAreTheServers(t *testing.T) {
	c, err := read("serve", "--api-key=K", "--ping-interval=off")
	if err != nil {
		t.Fatal(err)
	}
	cfg := c.Serve.serverConfig(nil)
	if cfg.PingInterval >= 0 || cfg.MaxPublish != cfg.MaxMessage || cfg.Auth == nil || cfg.Dev || cfg.MaxConnections != 0 || cfg.Shards != 0 {
		t.Errorf("%+v", cfg)
	}
}

// TestDefaultsFitKubernetes: a pod is killed 30 seconds after SIGTERM.
func TestDefaultsFitKubernetes(t *testing.T) {
	for _, c := range []struct {
		args        []string
		drain, stop time.Duration
	}{
		{[]string{"serve"}, 20 * time.Second, 29 * time.Second},
		{[]string{"serve", "--dev"}, time.Second, 10 * time.Second},
		{[]string{"serve", "--dev", "--drain=5s"}, 5 * time.Second, 14 * time.Second},
		{[]string{"serve", "--drain=14s", "--drain-delay=6s"}, 14 * time.Second, 29 * time.Second},
	} {
		got, err := read(c.args...)
		if err != nil {
			t.Fatal(err)
		}
		if s := got.Serve.settings; s.serverConfig(nil).Drain != c.drain || s.longestStop() != c.stop {
			t.Errorf("%v: drain %s, at most %s to the end", c.args, s.serverConfig(nil).Drain, s.longestStop())
		}
	}
}

// TestConfigurationIsDocumented: docs/configuration.md has a row for each
// setting, with its default, and no other.
func TestConfigurationIsDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := make(map[string]string)
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\| ([^|]*) \\|").FindAllStringSubmatch(string(text), -1) {
		rows[m[1]] = strings.Trim(m[2], "`")
	}
	var c cli
	parser, err := newParser(&c, newSources(), streams{})
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	for _, node := range parser.Model.Leaves(false) {
		for _, flag := range node.Flags {
			if flag.Group == nil || seen[flag.Name] {
				continue
			}
			seen[flag.Name] = true
			want := flag.Default
			switch {
			case flag.IsBool():
				want = "false"
			case want == "":
				want = "none"
			}
			if got := rows[flag.Name]; got != want {
				t.Errorf("docs/configuration.md: %s has default %q, want %q", flag.Name, got, want)
			}
			delete(rows, flag.Name)
		}
	}
	for name := range rows {
		t.Errorf("docs/configuration.md: there is no setting %s", name)
	}
}

// TestSampleFileIsAccepted: the file of docs/configuration.md is one that
// tocsin serve takes as it stands.
func TestSampleFileIsAccepted(t *testing.T) {
	text, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	sample := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindSubmatch(text)
	if sample == nil {
		t.Fatal("docs/configuration.md has no sample file")
	}
	c, err := read("serve", "--config", writeFile(t, string(sample[1])))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Serve.check(); err != nil {
		t.Error(err)
	}
}
