package house

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/tocsin-push/tocsin/wire"
)

// read returns a file of the repository.
func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, file))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// parse returns a Go file of the repository.
func parse(t *testing.T, file string) *ast.File {
	t.Helper()
	return parseIn(t, token.NewFileSet(), file)
}

// parseIn is parse with positions in fset.
func parseIn(t *testing.T, fset *token.FileSet, file string) *ast.File {
	t.Helper()
	f, err := parser.ParseFile(fset, filepath.Join(root, file), nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// goFiles calls each with the path of every Go file of the repository.
func goFiles(t *testing.T, each func(path string) error) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "node_modules" || d.Name() == ".git" || d.Name() == "bin"):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ".go"):
			return nil
		}
		return each(path)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// constants returns the values of a type's constants in a file, as they stand.
func constants(t *testing.T, file, typeName string) (values []string) {
	t.Helper()
	ast.Inspect(parse(t, file), func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Values) != 1 {
			return true
		}
		if of, ok := spec.Type.(*ast.Ident); ok && of.Name == typeName {
			values = append(values, spec.Values[0].(*ast.BasicLit).Value)
		}
		return true
	})
	if len(values) == 0 {
		t.Fatalf("%s has no constants of type %s", file, typeName)
	}
	return values
}

// section returns what stands below a heading of a page.
func section(t *testing.T, file, heading string) string {
	t.Helper()
	_, after, ok := strings.Cut(read(t, file), "\n## "+heading+"\n")
	if !ok {
		t.Fatalf("%s has no section %q", file, heading)
	}
	text, _, _ := strings.Cut(after, "\n## ")
	return text
}

// rows returns the table rows whose first cell matches.
func rows(text, first string) [][]string {
	var out [][]string
	for _, m := range regexp.MustCompile(`(?m)^\| *(`+first+`) *\|(.*)\|$`).FindAllStringSubmatch(text, -1) {
		cells := []string{strings.Trim(m[1], "`")}
		for cell := range strings.SplitSeq(m[2], "|") {
			cells = append(cells, strings.TrimSpace(cell))
		}
		out = append(out, cells)
	}
	return out
}

func TestCloseCodesAreDocumented(t *testing.T) {
	table := make(map[string][]string)
	for _, row := range rows(section(t, "docs/protocol.md", "Close codes"), `\d{4}`) {
		table[row[0]] = row
	}
	want := constants(t, "wire/close.go", "CloseCode")
	for _, value := range want {
		row := table[value]
		n, err := strconv.Atoi(value)
		if err != nil {
			t.Fatal(err)
		}
		code, then := wire.CloseCode(n), "stay away"
		if code.ComeBack() {
			then = "come back"
		}
		switch {
		case row == nil:
			t.Errorf("%s %s is not in docs/protocol.md", value, code)
		case row[1] != code.String() || row[2] != then:
			t.Errorf("docs/protocol.md has %s as %q, %q; the code says %q, %q", value, row[1], row[2], code, then)
		}
	}
	if len(table) != len(want) {
		t.Errorf("docs/protocol.md has %d close codes, wire/close.go %d", len(table), len(want))
	}
}

func TestErrorCodesAreDocumented(t *testing.T) {
	table := make(map[string]bool)
	for _, row := range rows(section(t, "docs/protocol.md", "Commands"), "`[a-z_]+`") {
		table[row[0]] = true
	}
	want := constants(t, "wire/command.go", "ErrorCode")
	for _, value := range want {
		if code := strings.Trim(value, `"`); !table[code] {
			t.Errorf("error code %s is not in docs/protocol.md", code)
		}
	}
	if len(table) != len(want) {
		t.Errorf("docs/protocol.md has %d error codes, wire/command.go %d", len(table), len(want))
	}
}

// TestPagesComeBackAsTheTableSays: the pages that show how a client reconnects
// decide on every close code as the table does.
func TestPagesComeBackAsTheTableSays(t *testing.T) {
	rule := regexp.MustCompile(`comeBack = \[([\d, ]+)\]\.includes\((?:e\.)?code\) \|\| \((?:e\.)?code >= (\d+) && (?:e\.)?code < (\d+)\)`)
	for _, file := range []string{"docs/protocol.md", "httpapi/demo.html"} {
		m := rule.FindStringSubmatch(read(t, file))
		if m == nil {
			t.Fatalf("%s does not say when it comes back", file)
		}
		list := strings.Split(m[1], ", ")
		low, _ := strconv.Atoi(m[2])
		high, _ := strconv.Atoi(m[3])
		for code := range 5000 {
			page := slices.Contains(list, strconv.Itoa(code)) || code >= low && code < high
			if want := wire.CloseCode(code).ComeBack(); page != want {
				t.Errorf("%s comes back after %d: %v, want %v", file, code, page, want)
			}
		}
	}
}
