//go:build linux

package report

import (
	"fmt"
	"math"

	"github.com/tocsin-push/tocsin/internal/limits"
)

// cell writes a figure. One in MiB is given in bytes.
func cell(v float64, unit string, ok bool) string {
	switch {
	case !ok:
		return ""
	case unit == "":
		return Thousands(v)
	case unit == "B" && v < 0:
		return "within noise" // memory of before the first connection was given back
	case unit == "B":
		return Thousands(v) + " B"
	case unit == "MiB" && v < 100<<20:
		return fmt.Sprintf("%.1f MiB", v/(1<<20))
	case unit == "MiB":
		return Thousands(v/(1<<20)) + " MiB"
	case unit == "%":
		return fmt.Sprintf("%.1f %%", v)
	}
	return fmt.Sprintf("%.*f %s", max(0, 2-int(math.Log10(max(v, 0.01)))), v, unit)
}

// Thousands writes a whole number with commas.
func Thousands(v float64) string { return limits.Group(int64(math.RoundToEven(v))) }
