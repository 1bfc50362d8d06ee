// Package bars says what Holdfast is held to, and whether it keeps it.
//
// A bar is a row: a figure of ours, often the peer's beside it, and a limit. Programs
// below this folder measure (journal for one) and write samples, a line of JSON each,
// into bench/results; bench/report draws the tables from them. A ratio is the median
// over interleaved pairs; the spread is the lowest and the highest pair.
package bars

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
)

// Row is one bar.
type Row struct {
	Key     string  // names it in samples and on the command line
	Measure string  // what is measured, in words
	Unit    string  // of Limit; "x" for a ratio
	Limit   float64 // inclusive; NaN: no bar, a scale to read the row before by
	Least   bool    // the figure must be at least Limit; else at most
}

// Bar is the limit in words.
func (r Row) Bar() string {
	if r.scale() {
		return "none: a scale"
	}
	sign := "<="
	if r.Least {
		sign = ">="
	}
	return fmt.Sprintf("%s %s", sign, figure(r.Limit, r.Unit))
}

func (r Row) scale() bool { return math.IsNaN(r.Limit) }

func (r Row) holds(v float64) bool {
	if r.Least {
		return v >= r.Limit
	}
	return v <= r.Limit
}

// Sample is one measurement of a row. Value is what the limit is held against; Ours
// and Peer are what it was made of, in OursUnit, for people.
type Sample struct {
	Row      string  `json:"row"`
	Value    float64 `json:"value"`
	Ours     float64 `json:"ours,omitempty"`
	Peer     float64 `json:"peer,omitempty"`
	OursUnit string  `json:"unit,omitempty"`
	Foreign  float64 `json:"foreign_cores,omitempty"` // cores that others used meanwhile
	Note     string  `json:"note,omitempty"`
	Commit   string  `json:"commit,omitempty"` // of the code that was measured
}

// Result is a row with all its samples.
type Result struct {
	Row
	Samples []Sample
}

// Median returns the middle of the samples' values; NaN without samples.
func (r Result) Median() float64 {
	return median(r.values(func(s Sample) float64 { return s.Value }))
}

// Spread returns the lowest and highest value.
func (r Result) Spread() (lowest, highest float64) {
	vs := r.values(func(s Sample) float64 { return s.Value })
	if len(vs) == 0 {
		return math.NaN(), math.NaN()
	}
	return slices.Min(vs), slices.Max(vs)
}

// Passes says whether the median keeps the bar.
func (r Result) Passes() bool { return len(r.Samples) > 0 && r.holds(r.Median()) }

func (r Result) values(of func(Sample) float64) []float64 {
	vs := make([]float64, len(r.Samples))
	for i, s := range r.Samples {
		vs[i] = of(s)
	}
	return vs
}

func median(vs []float64) float64 {
	if len(vs) == 0 {
		return math.NaN()
	}
	vs = slices.Sorted(slices.Values(vs))
	if n := len(vs); n%2 == 0 {
		return (vs[n/2-1] + vs[n/2]) / 2
	}
	return vs[len(vs)/2]
}

// Collect sorts samples into the rows; a sample of no row is an error.
func Collect(rows []Row, samples []Sample) ([]Result, error) {
	results := make([]Result, len(rows))
	for i, r := range rows {
		results[i].Row = r
	}
	for _, s := range samples {
		i := slices.IndexFunc(rows, func(r Row) bool { return r.Key == s.Row })
		if i < 0 {
			return nil, fmt.Errorf("a sample of %q, which is no bar", s.Row)
		}
		results[i].Samples = append(results[i].Samples, s)
	}
	return results, nil
}

// Table draws the results as Markdown. A row without samples was not measured, and says so.
func Table(results []Result) string {
	var b strings.Builder
	b.WriteString("| measure | bar | median | lowest to highest | ours | peer | n | at commit | |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n")
	for _, r := range results {
		if len(r.Samples) == 0 {
			fmt.Fprintf(&b, "| %s | %s | | | | | 0 | | not measured |\n", r.Measure, r.Bar())
			continue
		}
		lo, hi := r.Spread()
		ours := median(r.values(func(s Sample) float64 { return s.Ours }))
		peer := median(r.values(func(s Sample) float64 { return s.Peer }))
		verdict := "**miss**"
		switch {
		case r.scale():
			verdict = ""
		case r.Passes():
			verdict = "pass"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s to %s | %s | %s | %d | %s | %s |\n", r.Measure, r.Bar(), figure(r.Median(), r.Unit),
			figure(lo, ""), figure(hi, ""), optional(ours, r.Samples[0].OursUnit), optional(peer, r.Samples[0].OursUnit), len(r.Samples), r.Samples[0].Commit, verdict)
	}
	return b.String()
}

func optional(v float64, unit string) string {
	if v == 0 {
		return ""
	}
	return figure(v, unit)
}

// figure writes three digits that count.
func figure(v float64, unit string) string {
	text := fmt.Sprintf("%.3g", v)
	if math.Abs(v) >= 1000 {
		text = fmt.Sprintf("%.0f", v)
	}
	switch unit {
	case "":
		return text
	case "x":
		return text + "x"
	}
	return text + " " + unit
}

// Write writes samples, a line each.
func Write(w io.Writer, samples ...Sample) error {
	e := json.NewEncoder(w)
	for _, s := range samples {
		if err := e.Encode(s); err != nil {
			return err
		}
	}
	return nil
}

// Read reads what Write wrote; lines that begin with # are kept as the head, "key: value".
func Read(src string) (head [][2]string, samples []Sample, err error) {
	for line := range strings.Lines(src) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		if text, ok := strings.CutPrefix(line, "# "); ok {
			key, value, _ := strings.Cut(text, ": ")
			head = append(head, [2]string{key, value})
			continue
		}
		var s Sample
		d := json.NewDecoder(strings.NewReader(line))
		d.DisallowUnknownFields()
		if err := d.Decode(&s); err != nil {
			return nil, nil, fmt.Errorf("%q: %w", line, err)
		}
		samples = append(samples, s)
	}
	return head, samples, nil
}
