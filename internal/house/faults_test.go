package house

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// catalogue maps the rows of docs/faults.md to their state: "tested", "pending",
// or "not yet: …".
func catalogue(t *testing.T, doc string) map[string]string {
	t.Helper()
	states := make(map[string]string)
	for _, row := range rows(doc, `[A-Z]\d+`) {
		if len(row) != 4 {
			t.Errorf("row %s has %d cells, want 4", row[0], len(row))
			continue
		}
		id, state := row[0], row[3]
		if _, twice := states[id]; twice {
			t.Errorf("row %s stands twice", id)
		}
		if state != "tested" && state != "pending" && !strings.HasPrefix(state, "not yet: ") {
			t.Errorf("row %s is %q, it must be tested, pending or not yet: and a reason", id, state)
		}
		states[id] = state
	}
	return states
}

var (
	citation = regexp.MustCompile(`docs/faults\.md(?:\s+rows?)?((?:(?:\s+|,\s*|\s+and\s+|,\s+and\s+)[A-Z]\d+\b)*)`)
	rowID    = regexp.MustCompile(`[A-Z]\d+`)
)

// cited returns the rows that a comment cites; ok is false if it names the page
// and no row.
func cited(comment string) (ids []string, ok bool) {
	comment = strings.Join(strings.Fields(strings.ReplaceAll(comment, "//", " ")), " ")
	for _, m := range citation.FindAllStringSubmatch(comment, -1) {
		found := rowID.FindAllString(m[1], -1)
		if len(found) == 0 {
			return nil, false
		}
		ids = append(ids, found...)
	}
	return ids, true
}

var isTest = regexp.MustCompile(`^(Test|Fuzz|Benchmark)`)

// citations returns which rows test files cite, each with one place that does:
// shown are those that a test cites in its doc comment or its body, all are
// these and the others.
func citations(t *testing.T) (shown, all map[string]string) {
	t.Helper()
	shown, all = make(map[string]string), make(map[string]string)
	goFiles(t, func(path string) error {
		if !strings.HasSuffix(path, "_test.go") || filepath.Base(filepath.Dir(path)) == "house" {
			return nil
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, path, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, group := range f.Comments {
			ids, ok := cited(group.Text())
			place, test := fset.Position(group.Pos()).String(), testAround(f, group)
			if !ok && test != "" {
				t.Errorf("%s: a comment of %s names docs/faults.md and no row of it", place, test)
			}
			for _, id := range ids {
				all[id] = place
				if test != "" {
					shown[id] = test
				}
			}
		}
		return nil
	})
	return shown, all
}

// testAround returns the test that a comment stands above or in, "" if it
// belongs to none.
func testAround(f *ast.File, group *ast.CommentGroup) string {
	for _, d := range f.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if ok && isTest.MatchString(fn.Name.Name) && (fn.Doc == group || fn.Pos() <= group.Pos() && group.End() <= fn.End()) {
			return fn.Name.Name
		}
	}
	return ""
}

// TestFaultsAreShown holds docs/faults.md and the tests together: a row is
// tested if and only if a test cites it, and what a test cites is a row.
func TestFaultsAreShown(t *testing.T) {
	states := catalogue(t, read(t, "docs/faults.md"))
	shown, all := citations(t)
	for _, id := range slices.Sorted(maps.Keys(states)) {
		state, test := states[id], shown[id]
		switch {
		case state == "tested" && test == "":
			t.Errorf("docs/faults.md says that %s is tested, and no test cites it", id)
		case state != "tested" && test != "":
			t.Errorf("docs/faults.md says that %s is %s, and %s cites it: make it tested", id, state, test)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(all)) {
		if _, ok := states[id]; !ok {
			t.Errorf("%s cites row %s, which docs/faults.md does not have", all[id], id)
		}
	}
	if len(states) < 100 {
		t.Errorf("docs/faults.md has %d rows", len(states))
	}
}

func TestCitationsAreFound(t *testing.T) {
	for comment, want := range map[string]string{
		"Nothing.":                                                 "ok []",
		"A pong counts (docs/faults.md L5).":                       "ok [L5]",
		"Both (docs/faults.md K1 and K2).":                         "ok [K1 K2]",
		"Three (docs/faults.md rows P1, P2, and X18).":             "ok [P1 P2 X18]",
		"Cut by the end of a line (docs/faults.md\n// H3,\n// H4)": "ok [H3 H4]",
		"Twice: docs/faults.md X5; docs/faults.md X9, RFC 6455.":   "ok [X5 X9]",
		"See docs/faults.md.":                                      "no row",
	} {
		ids, ok := cited(comment)
		got := "no row"
		if ok {
			got = fmt.Sprintf("ok %v", ids)
		}
		if got != want {
			t.Errorf("%q: %s, want %s", comment, got, want)
		}
	}
}
