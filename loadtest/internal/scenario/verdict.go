//go:build linux

package scenario

import (
	"fmt"
	"strings"

	"github.com/tocsin-push/tocsin/loadtest/internal/generator"
	"github.com/tocsin-push/tocsin/loadtest/internal/report"
)

// verdict says what is wrong with a run that went through to its end.
func (s *session) verdict() error {
	for _, sub := range s.subjects {
		v := sub.Values
		switch {
		case sub.failed() > 0:
			return fmt.Errorf("%s: %s of %s handshakes failed", sub.Name, report.Thousands(float64(sub.failed())), report.Thousands(float64(s.N)))
		case v["lost"] > 0 && s.report.Scenario != "herd":
			return fmt.Errorf("%s: %s connections were lost", sub.Name, report.Thousands(v["lost"]))
		case s.report.Scenario == "push":
			return sub.pushVerdict()
		case v["missing"]+v["doubled"]+v["misordered"] > 0:
			return fmt.Errorf("%s: deliveries missing %s, doubled %s, out of order %s", sub.Name, report.Thousands(v["missing"]), report.Thousands(v["doubled"]), report.Thousands(v["misordered"]))
		case v["unanswered"] > 0:
			return fmt.Errorf("%s: %s messages were not answered", sub.Name, report.Thousands(v["unanswered"]))
		}
	}
	return nil
}

// failed returns how many handshakes failed for good: a herd tries again.
func (sub *subject) failed() uint64 {
	return generator.SumReasons(sub.first.Failures) - sub.first.Failures["interrupted"]
}

// pushVerdict says what is wrong with what became of the pushes.
func (sub *subject) pushVerdict() error {
	var wrong []string
	for _, w := range []struct{ key, text string }{
		{"receipt_failed", "failed"},
		{"missing", "missing"},
		{"doubled", "doubled"},
		{"misordered", "out of order"},
		{"foreign", "foreign"},
		{"receipt_false", "receipts false"},
	} {
		if n := sub.Values[w.key]; n > 0 {
			wrong = append(wrong, w.text+" "+report.Thousands(n))
		}
	}
	if wrong == nil {
		return nil
	}
	return fmt.Errorf("%s: of %s pushes %s", sub.Name, report.Thousands(sub.Values["pushes"]), strings.Join(wrong, ", "))
}
