//go:build linux

package report

import (
	"errors"
	"io"
)

// Output are the flags of the report.
type Output struct {
	JSON     bool     `name:"json" help:"Print the report as JSON."`
	Report   string   `placeholder:"FILE.html" type:"path" help:"Write the report as one self-contained HTML file too."`
	Markdown string   `placeholder:"FILE.md" type:"path" help:"Write the report as Markdown too, with the plots of --plots."`
	Plots    string   `placeholder:"PREFIX" type:"path" help:"Write the plots too, each as PREFIX-name.svg."`
	Remark   []string `sep:"none" placeholder:"TEXT" help:"Say this in the report as well."`
}

// Write writes the report to out and into the files that the flags name. What
// goes wrong with one does not keep it from the others.
func (o *Output) Write(r *Report, out io.Writer) error {
	tell := r.writeTable
	if o.JSON {
		tell = r.writeJSON
	}
	err := tell(out)
	plots, plotErr := r.plots()
	err = errors.Join(err, plotErr)
	if o.Plots != "" {
		for k := range plots {
			err = errors.Join(err, plots[k].write(o.Plots))
		}
	}
	if o.Markdown != "" {
		shown := plots
		if o.Plots == "" {
			shown = nil // they are nowhere
		}
		err = errors.Join(err, r.writeMarkdown(o.Markdown, shown, o.Plots))
	}
	if o.Report != "" {
		err = errors.Join(err, r.writeHTML(o.Report, plots))
	}
	return err
}
