//go:build linux

package report

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/tocsin-push/tocsin/loadtest/internal/machine"
)

// Report is what a run tells. Its fields are the JSON of --json.
type Report struct {
	Scenario    string          `json:"scenario"`
	Command     string          `json:"command"`
	Server      string          `json:"server_command,omitempty"`
	Started     time.Time       `json:"started"`
	Seconds     float64         `json:"seconds"`
	Machine     machine.Machine `json:"machine"`
	Stages      []Stage         `json:"stages,omitempty"`
	Results     []*Result       `json:"results"` // the server, and the floor if it was asked for
	Notes       []string        `json:"notes,omitempty"`
	Interrupted bool            `json:"interrupted,omitempty"`
	Error       string          `json:"error,omitempty"`

	// Pinned: server and floor had the same CPU to themselves, so that their
	// times and rates can be compared too.
	Pinned bool `json:"-"`
}

// Note adds a remark, once.
func (r *Report) Note(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(r.Notes, text) {
		r.Notes = append(r.Notes, text)
	}
}

// ratio returns the first result's figure as a multiple of the floor's.
func (r *Report) ratio(f figure) (float64, bool) {
	if len(r.Results) < 2 || f.ratio == noRatio || f.ratio == pinnedRatio && !r.Pinned {
		return 0, false
	}
	a, ok := r.Results[0].Values[f.key]
	b, also := r.Results[1].Values[f.key]
	return a / b, ok && also && b > 0
}

// writeJSON writes the report for machines, the ratios included.
func (r *Report) writeJSON(w io.Writer) error {
	ratios := map[string]float64{}
	for _, f := range figures {
		if v, ok := r.ratio(f); ok {
			ratios[f.key] = v
		}
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(struct {
		*Report
		Ratios map[string]float64 `json:"ratios,omitempty"`
	}{r, ratios})
}

// Stage is one step of a soak.
type Stage struct {
	Name      string  `json:"name"`
	Seconds   float64 `json:"seconds"`
	Open      int     `json:"open"` // at its end
	Lost      uint64  `json:"lost"` // but for those that the scenario itself drops
	Pings     uint64  `json:"pings_answered"`
	Delivered uint64  `json:"delivered"`
}

// figureRows are the figures, a row each; the first names the columns.
func (r *Report) figureRows() [][]string {
	head := []string{""}
	for _, res := range r.Results {
		head = append(head, res.Name)
	}
	if len(r.Results) > 1 {
		head = append(head, "ratio")
	}
	rows := [][]string{head}
	for _, f := range figures {
		row := []string{f.label}
		known := false
		for _, res := range r.Results {
			v, ok := res.Values[f.key]
			known = known || ok
			row = append(row, cell(v, f.unit, ok))
		}
		if v, ok := r.ratio(f); ok {
			row = append(row, fmt.Sprintf("%.2f", v))
		} else if len(head) > len(row) {
			row = append(row, "")
		}
		if known {
			rows = append(rows, row)
		}
	}
	return rows
}

// stageRows are the stages, if the scenario has some.
func (r *Report) stageRows() [][]string {
	if len(r.Stages) == 0 {
		return nil
	}
	rows := [][]string{{"stage", "took", "open at its end", "lost", "heartbeats answered", "delivered"}}
	for _, st := range r.Stages {
		row := []string{st.Name, cell(st.Seconds, "s", true), Thousands(float64(st.Open))}
		for _, n := range []uint64{st.Lost, st.Pings, st.Delivered} {
			row = append(row, Thousands(float64(n)))
		}
		rows = append(rows, row)
	}
	return rows
}

// remarks are what the figures do not tell, a line each.
func (r *Report) remarks() (lines []string) {
	reasons := func(what string, counted map[string]uint64) {
		for _, reason := range slices.Sorted(maps.Keys(counted)) {
			lines = append(lines, fmt.Sprintf("%s: %s × %s", what, Thousands(float64(counted[reason])), reason))
		}
	}
	for _, res := range r.Results {
		reasons(res.Name+": handshakes failed", res.Failures)
		reasons(res.Name+": connections lost", res.Lost)
		reasons(res.Name+": pushes failed", res.Refused)
		for _, s := range res.Caches {
			lines = append(lines, fmt.Sprintf("%s: kernel cache %-22s %6.2f objects, %6.0f B a connection", res.Name, s.Name, s.Objects, s.Bytes))
		}
	}
	for _, note := range r.Notes {
		lines = append(lines, "note: "+note)
	}
	if r.Interrupted {
		lines = append(lines, "note: interrupted; this is what was measured until then")
	}
	return lines
}

// tables are the stages, if there are some, and the figures.
func (r *Report) tables() (list [][][]string) {
	if rows := r.stageRows(); rows != nil {
		list = append(list, rows)
	}
	return append(list, r.figureRows())
}

// writeTable writes the report for people.
func (r *Report) writeTable(w io.Writer) error {
	fmt.Fprintf(w, "loadtest %s, %s, %s\n", r.Scenario, r.Machine, r.Started.Format(time.DateTime))
	for _, rows := range r.tables() {
		t := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight) // the padded first column stands to the left
		for _, row := range rows {
			fmt.Fprintf(t, "%-52s\t%s\t\n", row[0], strings.Join(row[1:], "\t"))
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	for _, line := range r.remarks() {
		fmt.Fprintln(w, line)
	}
	return nil
}
