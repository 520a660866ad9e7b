// Package house holds the tests of what no single package can promise: that
// imports point down only, and that the documents say what the code says.
package house

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	module = "github.com/tocsin-push/tocsin"
	root   = "../.." // of the module
)

// floors of the house. A package belongs to its longest entry; it imports its
// own entry's packages and those of lower floors.
var floors = map[string]int{
	"netpoll": 0, "pool": 0, "wire": 0, "internal/floor": 0, "internal/limits": 0, "internal/nearest": 0, "internal/seldom": 0, "internal/lockorder": 0,
	"wire/tocsin": 1, "server/internal/engine": 1,
	"server": 2, "internal/wstest": 2,
	"httpapi": 3, "cluster": 3, "client": 3, "server/internal/engine/enginetest": 3,
	"cmd/tocsin": 4, "loadtest": 4, "e2e": 4, "internal/house": 4, "internal/mutants": 4,
	// The rooms of loadtest, so that none of them needs another that needs it.
	"loadtest/internal/machine": 0, "loadtest/internal/usage": 0,
	"loadtest/internal/generator": 1, "loadtest/internal/report": 1,
	"loadtest/internal/api":      2,
	"loadtest/internal/scenario": 3,
}

// never are the packages that must not be reached, by whatever way: each
// name and each prefix stand for themselves and all below them.
var never = map[string][]string{
	"server":   {"github.com/nats-io", "github.com/prometheus", "html/template", "text/template", "testing"},
	"client":   {module + "/server"},
	"loadtest": {module + "/server", module + "/httpapi"},
}

// forTests is a package below server that only tests import.
const forTests = "server/internal/engine/enginetest"

// onlyThese are the packages outside the standard library that may be imported.
var onlyThese = map[string][]string{
	"internal/floor":   {"golang.org/x/sys/unix"},
	"internal/mutants": nil,
}

// pkg is a package as go list tells it.
type pkg struct {
	ImportPath string
	Imports    []string
	Standard   bool
	Module     *struct{ Main bool }
}

// graph is the import graph of the module with everything it reaches.
type graph map[string]pkg

// check returns a sentence for every broken law.
func (g graph) check() (broken []string) {
	for path, p := range g {
		if p.Module == nil || !p.Module.Main {
			continue
		}
		room, floor, ok := roomOf(path)
		if !ok {
			broken = append(broken, fmt.Sprintf("%s stands on no floor: give it one in internal/house", path))
			continue
		}
		for _, dep := range p.Imports {
			below, depFloor, ours := roomOf(dep)
			if ours && below != room && depFloor >= floor {
				broken = append(broken, fmt.Sprintf("%s (floor %d) imports %s (floor %d): imports point down only",
					path, floor, dep, depFloor))
			}
			if allowed, strict := onlyThese[room]; strict && !g[dep].Standard && !slices.Contains(allowed, dep) {
				broken = append(broken, fmt.Sprintf("%s imports %s: only the standard library and %s may be",
					path, dep, strings.Join(allowed, ", ")))
			}
		}
		for name, prefixes := range never {
			if !within(path, module+"/"+name) {
				continue
			}
			for _, prefix := range prefixes {
				if prefix == "testing" && room == forTests {
					continue
				}
				if way := g.way(path, prefix); way != nil {
					broken = append(broken, fmt.Sprintf("%s must never reach %s: %s", path, prefix, strings.Join(way, " → ")))
				}
			}
		}
	}
	slices.Sort(broken)
	return broken
}

// roomOf returns the entry of floors that an import path belongs to.
func roomOf(path string) (room string, floor int, ok bool) {
	for name, n := range floors {
		if within(path, module+"/"+name) && len(name) > len(room) {
			room, floor, ok = name, n, true
		}
	}
	return room, floor, ok
}

func within(path, prefix string) bool {
	return path == prefix || strings.HasPrefix(path, prefix+"/")
}

// way returns the shortest chain of imports from path to something below
// prefix, or nil.
func (g graph) way(path, prefix string) []string {
	from := map[string]string{path: ""}
	for queue := []string{path}; len(queue) > 0; queue = queue[1:] {
		at := queue[0]
		if within(at, prefix) {
			var chain []string
			for ; at != ""; at = from[at] {
				chain = append(chain, at)
			}
			slices.Reverse(chain)
			return chain
		}
		for _, dep := range g[at].Imports {
			if _, seen := from[dep]; !seen {
				from[dep] = at
				queue = append(queue, dep)
			}
		}
	}
	return nil
}

// load asks go list for the graph as it is built on linux.
func load(t *testing.T) graph {
	t.Helper()
	// Reading the tree here makes go test's cache see what go list reads.
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() && (d.Name() == "node_modules" || d.Name() == ".git" || d.Name() == "bin") {
			return fs.SkipDir
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "list", "-e", "-deps", "-json=ImportPath,Imports,Standard,Module", "./...")
	cmd.Dir = root
	cmd.Env = append(cmd.Environ(), "GOOS=linux", "GOWORK=off")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.Bytes())
	}
	g := graph{}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return g
		} else if err != nil {
			t.Fatal(err)
		}
		g[p.ImportPath] = p
	}
}

func TestImportsPointDown(t *testing.T) {
	g := load(t)
	for _, room := range []string{"netpoll", "pool", "wire", "wire/tocsin", "server"} {
		if _, ok := g[module+"/"+room]; !ok {
			t.Errorf("go list does not know %s", room)
		}
	}
	for _, law := range g.check() {
		t.Error(law)
	}
}

func TestCheckFindsEveryBreach(t *testing.T) {
	ours := func(imports ...string) pkg {
		return pkg{Imports: imports, Module: &struct{ Main bool }{Main: true}}
	}
	std := pkg{Standard: true}
	for _, tt := range []struct {
		name string
		g    graph
		want string // "" for a graph that keeps the law
	}{
		{"down", graph{module + "/server": ours(module+"/wire", "fmt"), module + "/wire": ours(), "fmt": std}, ""},
		{"own room", graph{module + "/loadtest": ours(module + "/loadtest/vm"), module + "/loadtest/vm": ours()}, ""},
		{"up", graph{module + "/wire": ours(module + "/server"), module + "/server": ours()}, "wire (floor 0) imports"},
		{"a protocol", graph{module + "/server": ours(module + "/wire/tocsin"), module + "/wire/tocsin": ours(module + "/wire"), module + "/wire": ours()}, ""},
		{"up to a protocol", graph{module + "/wire": ours(module + "/wire/tocsin"), module + "/wire/tocsin": ours()}, "wire (floor 0) imports"},
		{"sideways", graph{module + "/client": ours(module + "/httpapi"), module + "/httpapi": ours()}, "client (floor 3) imports"},
		{"a name that only begins alike", graph{module + "/servers": ours()}, "servers stands on no floor"},
		{"new package", graph{module + "/utils": ours()}, "utils stands on no floor"},
		{
			"far away",
			graph{module + "/server": ours("a"), "a": {Imports: []string{"b"}}, "b": {Imports: []string{"text/template"}}},
			"/server must never reach text/template: " + module + "/server → a → b → text/template",
		},
		{
			"below a prefix",
			graph{module + "/server": ours("github.com/nats-io/nats.go")},
			"must never reach github.com/nats-io",
		},
		{
			"loadtest",
			graph{module + "/loadtest": ours(module + "/client"), module + "/client": ours(module + "/server"), module + "/server": ours()},
			"loadtest must never reach " + module + "/server",
		},
		{
			"loadtest's rooms",
			graph{module + "/loadtest/internal/report": ours(module + "/loadtest/internal/generator"), module + "/loadtest/internal/generator": ours()},
			"loadtest/internal/report (floor 1) imports " + module + "/loadtest/internal/generator (floor 1)",
		},
		{
			"a room of loadtest",
			graph{module + "/loadtest/internal/scenario": ours(module + "/client"), module + "/client": ours(module + "/server"), module + "/server": ours()},
			"loadtest/internal/scenario must never reach " + module + "/server",
		},
		{"floor, library", graph{module + "/internal/floor": ours("github.com/gobwas/ws")}, "internal/floor imports github.com/gobwas/ws"},
		{"floor", graph{module + "/internal/floor": ours("golang.org/x/sys/unix", "fmt"), "fmt": std}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			broken := strings.Join(tt.g.check(), "\n")
			if !strings.Contains(broken, tt.want) || (tt.want == "") != (broken == "") {
				t.Errorf("got %q, want %q in it", broken, tt.want)
			}
		})
	}
}
