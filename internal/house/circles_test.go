package house

import (
	"errors"
	"go/ast"
	"go/token"
	"go/types"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// calls are the files of a package whose functions each file calls.
type calls map[string]map[string]bool

// noImports has a package checked without those that it imports: what its own
// files call of each other is known all the same.
type noImports struct{}

// Import implements types.Importer.
func (noImports) Import(string) (*types.Package, error) { return nil, errors.New("not looked at") }

func callsIn(t *testing.T, dir string) calls {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(root, dir))
	if err != nil {
		t.Fatal(err)
	}
	fset := token.NewFileSet()
	var files []*ast.File
	for _, e := range entries {
		if name := e.Name(); strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go") {
			files = append(files, parseIn(t, fset, filepath.Join(dir, name)))
		}
	}
	info := &types.Info{Uses: map[*ast.Ident]types.Object{}}
	checker := types.Config{Importer: noImports{}, Error: func(error) {}}
	pkg, _ := checker.Check(dir, fset, files, info)
	out := calls{}
	for ident, used := range info.Uses {
		if _, isFunc := used.(*types.Func); !isFunc || used.Pkg() != pkg {
			continue
		}
		from, to := filepath.Base(fset.Position(ident.Pos()).Filename), filepath.Base(fset.Position(used.Pos()).Filename)
		if out[from] == nil {
			out[from] = map[string]bool{}
		}
		out[from][to] = true
	}
	return out
}

// reach adds to seen what file calls, by whatever way.
func (c calls) reach(file string, seen map[string]bool) {
	for to := range c[file] {
		if !seen[to] {
			seen[to] = true
			c.reach(to, seen)
		}
	}
}

// circle returns the files that call file and are called by it, by whatever way.
func (c calls) circle(file string) (in []string) {
	down := map[string]bool{}
	c.reach(file, down)
	for other := range down {
		up := map[string]bool{}
		c.reach(other, up)
		if up[file] {
			in = append(in, other)
		}
	}
	slices.Sort(in)
	return in
}

// TestFilesCallInSmallCircles: a reader of server and engine need not know all
// files to understand one.
func TestFilesCallInSmallCircles(t *testing.T) {
	for _, dir := range []string{"server", "server/internal/engine"} {
		c := callsIn(t, dir)
		if len(c) < 20 {
			t.Fatalf("%d files of %s call something", len(c), dir)
		}
		for file := range c {
			if in := c.circle(file); len(in) > 4 {
				t.Errorf("%s/%s is in a circle of %d files that call each other: %s", dir, file, len(in), strings.Join(in, ", "))
			}
		}
	}
}
