//go:build linux

package report

import (
	_ "embed"
	"fmt"
	"html/template"
	"os"
	"strings"
)

//go:embed page.html
var page string

// writeHTML writes the report as one file that needs no network.
func (r *Report) writeHTML(path string, plots []drawing) error {
	var drawn []template.HTML
	for _, p := range plots {
		_, svg, _ := strings.Cut(p.svg, "<svg") // without the XML prolog, which HTML does not have
		drawn = append(drawn, template.HTML("<svg"+svg))
	}
	t, err := template.New("report").Parse(page)
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := t.Execute(f, struct {
		*Report
		Tables  [][][]string
		Remarks []string
		Plots   []template.HTML
	}{r, r.tables(), r.remarks(), drawn}); err != nil {
		f.Close()
		return fmt.Errorf("report %s: %w", path, err)
	}
	return f.Close()
}
