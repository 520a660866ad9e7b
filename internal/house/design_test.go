package house

import (
	"go/ast"
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// functions returns the functions of a file, methods as receiver.name.
func functions(t *testing.T, path string) map[string]bool {
	t.Helper()
	names := make(map[string]bool)
	for _, d := range parse(t, path).Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok {
			continue
		}
		name := fn.Name.Name
		if fn.Recv != nil {
			of := fn.Recv.List[0].Type
			if star, ok := of.(*ast.StarExpr); ok {
				of = star.X
			}
			if ident, ok := of.(*ast.Ident); ok {
				name = ident.Name + "." + name
			}
		}
		names[name] = true
	}
	return names
}

// TestFlowsAreAsTheCode: each function that docs/design.md walks through stands
// in the file beside it.
func TestFlowsAreAsTheCode(t *testing.T) {
	steps := rows(read(t, "docs/design.md"), "`[a-zA-Z]+\\.[a-zA-Z]+`")
	for _, step := range steps {
		if name, file := step[0], step[1]; !functions(t, file)[name] {
			t.Errorf("docs/design.md walks through %s of %s, which is not there", name, file)
		}
	}
	if len(steps) < 20 {
		t.Errorf("docs/design.md walks through %d functions", len(steps))
	}
}

// TestFloorsAreDocumented: docs/design.md has the floors that the imports are
// held to.
func TestFloorsAreDocumented(t *testing.T) {
	doc := read(t, "docs/design.md")
	for name, floor := range floors {
		if _, err := os.Stat(filepath.Join(root, name)); err != nil {
			continue // kept for a package that is not there yet
		}
		if !regexp.MustCompile(`(?m)^\| ` + string(rune('0'+floor)) + ` \|[^|]*` + "`" + name + "`").MatchString(doc) {
			t.Errorf("docs/design.md does not have %s on floor %d", name, floor)
		}
	}
}

// TestLawsAreThere: a comment that cites a law by its number cites one of
// docs/design.md.
func TestLawsAreThere(t *testing.T) {
	there := make(map[string]bool)
	for _, m := range regexp.MustCompile(`(?m)^(\d+)\. \*\*`).FindAllStringSubmatch(section(t, "docs/design.md", "Laws"), -1) {
		there[m[1]] = true
	}
	if len(there) != 13 {
		t.Fatalf("docs/design.md has %d laws, want 13", len(there))
	}
	cite := regexp.MustCompile(`\b[Ll]aw (\d+)`)
	goFiles(t, func(path string) error {
		text, err := os.ReadFile(path)
		for _, m := range cite.FindAllSubmatch(text, -1) {
			if !there[string(m[1])] {
				t.Errorf("%s cites law %s, which docs/design.md does not have", path, m[1])
			}
		}
		return err
	})
}
