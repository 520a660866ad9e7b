//go:build linux

package report

import (
	"image/color"
	"math"
	"os"
	"strings"

	"github.com/HdrHistogram/hdrhistogram-go"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// curves are the latencies that are drawn, all results' of a kind in one plot.
var curves = []struct{ key, title string }{
	{"handshake", "Handshake"},
	{"delivery", "Publish to delivery"},
	{"fanout", "Publish to last delivery"},
	{"http", "Push to receipt, over HTTP"},
	{"push", "Push to client"},
	{"echo", "Send to reply"},
	{"outage", "Drop to back"},
	{"before", "Live clients before the drop"},
	{"meanwhile", "Live clients meanwhile"},
}

// drawing is a plot as SVG.
type drawing struct{ name, title, svg string }

// file is where a drawing is written to.
func (d *drawing) file(prefix string) string { return prefix + "-" + d.name + ".svg" }

func (d *drawing) write(prefix string) error {
	return os.WriteFile(d.file(prefix), []byte(d.svg), 0o644)
}

// plots draws what there is to draw.
func (r *Report) plots() (list []drawing, err error) {
	add := func(name, title string, p *plot.Plot, err error) error {
		if p == nil || err != nil {
			return err
		}
		p.Title.Text = title
		svg, err := drawSVG(p)
		list = append(list, drawing{name, title, svg})
		return err
	}
	p, err := r.overTime("open", func(s sample) float64 { return float64(s.open) })
	if err = add("connections", "Connections", p, err); err != nil {
		return nil, err
	}
	p, err = r.overTime("MiB resident", func(s sample) float64 { return float64(s.resident) / (1 << 20) })
	if err = add("memory", "Server memory", p, err); err != nil {
		return nil, err
	}
	for _, c := range curves {
		p, err := r.curve(c.key)
		if err = add(c.key, c.title, p, err); err != nil {
			return nil, err
		}
	}
	return list, nil
}

func drawSVG(p *plot.Plot) (string, error) {
	const width, height = 7 * vg.Inch, 3 * vg.Inch
	c := vgsvg.New(width, height)
	canvas := draw.New(c)
	canvas.SetColor(color.White)
	canvas.Fill(canvas.Path())
	// The legend stands beside the title, where no line of the grid runs, and
	// to the left, where a word follows its line: whatever font a browser
	// takes, and however wide, the word is not struck through.
	legend := p.Legend
	legend.Top, legend.Left = true, true
	p.Legend = plot.NewLegend()
	p.Title.Padding = legend.Rectangle(canvas).Size().Y
	const lastTick = 20 // half of a label may stand out
	p.Draw(draw.Crop(canvas, 0, -vg.Points(lastTick), 0, 0))
	legend.Draw(draw.Crop(canvas, vg.Points(40), 0, 0, 0))
	var b strings.Builder
	_, err := c.WriteTo(&b)
	return b.String(), err
}

var colors = []color.Color{color.RGBA{R: 0x1f, G: 0x5f, B: 0xbf, A: 0xff}, color.RGBA{R: 0xbf, G: 0x6f, B: 0x1f, A: 0xff}}

// line adds one result's line to a plot.
func (r *Report) line(p *plot.Plot, k int, points plotter.XYs) error {
	l, err := plotter.NewLine(points)
	if err != nil {
		return err
	}
	l.Color, l.Width = colors[k%len(colors)], vg.Points(1.5)
	p.Add(l)
	p.Legend.Add(r.Results[k].Name, l)
	return nil
}

// curve draws latency over percentile, each nine of which is as wide as the
// last.
func (r *Report) curve(key string) (*plot.Plot, error) {
	p, used := plot.New(), false
	p.Y.Label.Text, p.X.Label.Text = "ms", "percentile"
	p.Add(plotter.NewGrid())
	p.X.Tick.Marker = plot.ConstantTicks{
		{Value: 0, Label: "0"},
		{Value: math.Log10(2), Label: "50"},
		{Value: 1, Label: "90"},
		{Value: 2, Label: "99"},
		{Value: 3, Label: "99.9"},
		{Value: 4, Label: "99.99"},
		{Value: 5, Label: "99.999"},
	}
	for k, res := range r.Results {
		h := res.hists[key]
		if h == nil || h.TotalCount() < 2 {
			continue
		}
		if err := r.line(p, k, percentileCurve(h)); err != nil {
			return nil, err
		}
		used = true
	}
	if !used {
		return nil, nil
	}
	p.Y.Min = 0
	return p, nil
}

// percentileCurve reads a histogram in steps of a twentieth of a nine, up to
// the percentile that the longest value alone is above.
func percentileCurve(h *hdrhistogram.Histogram) (points plotter.XYs) {
	end := math.Log10(float64(h.TotalCount()))
	for nines := 0.0; nines < end; nines += 0.05 {
		points = append(points, plotter.XY{X: nines, Y: float64(h.ValueAtQuantile(100*(1-math.Pow(10, -nines)))) / 1e6})
	}
	return append(points, plotter.XY{X: end, Y: float64(h.Max()) / 1e6})
}

// maxPoints is how many a plot can show; an hour has many times more samples.
const maxPoints = 1000

// overTime draws a value of the samples.
func (r *Report) overTime(unit string, value func(sample) float64) (*plot.Plot, error) {
	p, used := plot.New(), false
	p.Y.Label.Text, p.X.Label.Text = unit, "seconds"
	p.Add(plotter.NewGrid())
	for k, res := range r.Results {
		var points plotter.XYs
		var most float64
		every := 1 + len(res.samples)/maxPoints
		for i, s := range res.samples {
			if i%every != 0 && i < len(res.samples)-1 {
				continue
			}
			points = append(points, plotter.XY{X: s.at.Seconds(), Y: value(s)})
			most = max(most, value(s))
		}
		if most == 0 || len(points) < 2 {
			continue
		}
		if err := r.line(p, k, points); err != nil {
			return nil, err
		}
		used = true
	}
	if !used {
		return nil, nil
	}
	p.X.Min, p.Y.Min = 0, 0
	return p, nil
}
