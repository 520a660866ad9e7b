//go:build linux

package report

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/tocsin-push/tocsin/loadtest/internal/machine"
)

// Bench is what a server is when it is held against the bare loop, row by row.
type Bench struct {
	Machine machine.Machine `json:"machine"`
	Rows    []Row           `json:"rows"`
}

// Row is one line of it.
type Row struct {
	Row      string    `json:"row"`
	N        int       `json:"n"`
	What     string    `json:"what"`
	Unit     string    `json:"unit"`
	Measured float64   `json:"measured"`
	Floor    float64   `json:"floor,omitempty"`
	Ratio    float64   `json:"ratio,omitempty"`
	Bar      float64   `json:"bar"` // of the ratio, or of what was measured where there is no floor
	Met      bool      `json:"met"`
	Rounds   []float64 `json:"rounds,omitempty"` // tocsin's, in turn with
	Floors   []float64 `json:"floors,omitempty"`
}

// WriteJSON writes it for machines.
func (b *Bench) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(b)
}

// WriteTable writes it for people.
func (b *Bench) WriteTable(w io.Writer) error {
	fmt.Fprintln(w, b.Machine)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "%-56s\tn\tmeasured\tfloor\tratio\tto reach\t\t\n", "")
	for _, r := range b.Rows {
		floor, ratio := "", ""
		reach := "≤ " + cell(r.Bar, r.Unit, true)
		if r.Floor > 0 {
			floor, ratio, reach = cell(r.Floor, r.Unit, true), fmt.Sprintf("%.2f", r.Ratio), fmt.Sprintf("≤ %.2f", r.Bar)
		}
		met := "yes"
		if !r.Met {
			met = "NO"
		}
		fmt.Fprintf(t, "%-56s\t%s\t%s\t%s\t%s\t%s\t%s\t\n", r.What, Thousands(float64(r.N)), cell(r.Measured, r.Unit, true), floor, ratio, reach, met)
	}
	return t.Flush()
}
