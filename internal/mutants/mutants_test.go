package main

import (
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

const root = "../.."

// TestBugsCanBePlanted: the old text of each stands in its file, once, and what
// it becomes is Go.
func TestBugsCanBePlanted(t *testing.T) {
	names := map[string]bool{}
	for _, b := range bugs {
		if names[b.name] || b.old == b.new {
			t.Errorf("%q is there twice, or changes nothing", b.name)
		}
		names[b.name] = true
		text, err := os.ReadFile(filepath.Join(root, b.file))
		if err != nil {
			t.Errorf("%q: %v", b.name, err)
			continue
		}
		planted, err := b.plant(string(text))
		if err != nil {
			t.Error(err)
			continue
		}
		if _, err := parser.ParseFile(token.NewFileSet(), b.file, planted, parser.SkipObjectResolution); err != nil {
			t.Errorf("%q: %v", b.name, err)
		}
	}
	if len(bugs) < 40 {
		t.Errorf("there are %d bugs", len(bugs))
	}
}

// TestRowsAreThose of the page of faults; and of the bugs that were found from
// outside all are planted that live in this code and that a judge can see.
func TestRowsAreThose(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "docs/faults.md"))
	if err != nil {
		t.Fatal(err)
	}
	planted := map[string]bool{
		"X3": true, "X15": true, "X16": true, // not in this code
		"X11": true, // costs alone
	}
	for _, b := range bugs {
		planted[b.row] = true
		if b.row != "" && !strings.Contains(string(text), "\n| "+b.row+" | ") {
			t.Errorf("%q is of row %s, which docs/faults.md does not have", b.name, b.row)
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^\| (X\d+) \|`).FindAllStringSubmatch(string(text), -1) {
		if !planted[m[1]] {
			t.Errorf("row %s of docs/faults.md is not planted", m[1])
		}
	}
}

// TestPlantWantsTheTextOnce: not never, nor twice.
func TestPlantWantsTheTextOnce(t *testing.T) {
	b := &bug{old: "a < b", new: "a <= b"}
	for text, want := range map[string]string{"": "", "if a < b {": "if a <= b {", "a < b && a < b": ""} {
		got, err := b.plant(text)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q becomes %q, %v", text, got, err)
		}
	}
}

// TestRead: a judge's sentence is told from a crash, and totals are read.
func TestRead(t *testing.T) {
	got := read("=== RUN   TestSim\n=== RUN   TestSim/4\n=== RUN   TestSim/5\n    sim_test.go:51: seed 5, step 12, in its life: client 3: no answer\n")
	if got.seed != 5 || got.judge != "client 3: no answer" || got.crash != "" {
		t.Errorf("a failure is read as %+v", got)
	}
	got = read("=== RUN   TestSim/7\n--- FAIL: TestSim/7 (0.00s)\npanic: nil map [recovered]\n\ngoroutine 7 [running]:\n")
	if got.seed != 7 || got.judge != "" || got.crash != "panic: nil map [recovered]" {
		t.Errorf("a crash is read as %+v", got)
	}
	got = read("2 seeds, 90 events, 7 a second\nfaults, and how many of them in a million events:\n  a wait that fails                  3        8\n" +
		"happenings, and how many of them in a million events:\n  a push                  4        9\nPASS\n")
	want := totals{2, 90, map[string]map[string]int{"faults": {"a wait that fails": 3}, "happenings": {"a push": 4}}}
	if !reflect.DeepEqual(got.totals, want) {
		t.Errorf("totals are read as %+v", got.totals)
	}
}
