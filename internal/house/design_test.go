package house

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func design(t *testing.T) string {
	t.Helper()
	doc, err := os.ReadFile(filepath.Join(root, "docs/design.md"))
	if err != nil {
		t.Fatal(err)
	}
	return string(doc)
}

// functions returns the functions of a file, methods as receiver.name.
func functions(t *testing.T, path string) map[string]bool {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, path), nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	names := make(map[string]bool)
	for _, d := range f.Decls {
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
	steps := rows(design(t), "`[a-zA-Z]+\\.[a-zA-Z]+`")
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
	doc := design(t)
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
	_, laws, ok := strings.Cut(design(t), "\n## Laws\n")
	laws, _, _ = strings.Cut(laws, "\n## ")
	there := make(map[string]bool)
	for _, m := range regexp.MustCompile(`(?m)^(\d+)\. \*\*`).FindAllStringSubmatch(laws, -1) {
		there[m[1]] = true
	}
	if !ok || len(there) != 13 {
		t.Fatalf("docs/design.md has %d laws, want 13", len(there))
	}
	cite := regexp.MustCompile(`\b[Ll]aw (\d+)`)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "node_modules" || d.Name() == ".git" || d.Name() == "bin") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		text, err := os.ReadFile(path)
		for _, m := range cite.FindAllSubmatch(text, -1) {
			if !there[string(m[1])] {
				t.Errorf("%s cites law %s, which docs/design.md does not have", path, m[1])
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
