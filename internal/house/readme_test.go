package house

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestReadmeCompiles builds the Go block of the README, as it stands, as the
// body of a main function.
func TestReadmeCompiles(t *testing.T) {
	_, after, ok := strings.Cut(read(t, "README.md"), "\n```go\n")
	block, _, _ := strings.Cut(after, "\n```\n")
	if !ok {
		t.Fatal("README.md has no Go block")
	}
	program := filepath.Join(t.TempDir(), "main.go")
	imports := []string{"context", "log", "net", "net/http", module + "/server"}
	source := "package main\n\nimport (\n\t\"" + strings.Join(imports, "\"\n\t\"") + "\"\n)\n\nfunc main() {\n" + block + "\n}\n"
	if err := os.WriteFile(program, []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	// The overlay shows the go command a package of this module that is not there.
	at, err := filepath.Abs(filepath.Join(root, "internal/house/readme/main.go"))
	if err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {at: program}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "overlay.json")
	if err := os.WriteFile(file, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "build", "-overlay", file, "-o", os.DevNull, "./internal/house/readme")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("the Go block of README.md does not compile: %v\n%s", err, out)
	}
}
