// Package monitor holds what monitoring systems need of Holdfast, and keeps it true.
//
// METRICS.md lists every metric: each daemon's test holds its own registry to its part of the list (Hold).
// dashboard.json is a dashboard for Grafana, alerts.yaml are rules for Prometheus: this package's tests hold
// both to the list, and alerts.test.yaml, which promtool runs, shows each alert fire and not fire.
// The code here is for tests.
package monitor

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// Metric is one row of the list.
type Metric struct {
	Name   string
	Type   string // counter, gauge or histogram
	Labels []string
	Help   string
}

// Types as METRICS.md names them.
const (
	counter   = "counter"
	gauge     = "gauge"
	histogram = "histogram"
)

var descPattern = regexp.MustCompile(`^Desc\{fqName: "([^"]*)", help: "(.*)", unit: "[^"]*", constLabels: \{\}, variableLabels: \{([^}]*)\}\}$`)

// Described are all metrics that the collectors can give, by name, whether they give them now or not. What ends in _total is a
// counter; those named in histograms are histograms.
func Described(histograms []string, collectors ...prometheus.Collector) ([]Metric, error) {
	var all []Metric
	for _, c := range collectors {
		ch := make(chan *prometheus.Desc)
		go func() {
			defer close(ch)
			c.Describe(ch)
		}()
		var errs []error
		for d := range ch {
			m := descPattern.FindStringSubmatch(d.String())
			if m == nil {
				errs = append(errs, fmt.Errorf("cannot be read: %s", d))
				continue
			}
			metric := Metric{Name: m[1], Type: gauge, Help: strings.ReplaceAll(m[2], `\"`, `"`)}
			switch {
			case slices.Contains(histograms, metric.Name):
				metric.Type = histogram
			case strings.HasSuffix(metric.Name, "_total"):
				metric.Type = counter
			}
			if m[3] != "" {
				metric.Labels = strings.Split(m[3], ",")
			}
			all = append(all, metric)
		}
		if err := errors.Join(errs...); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(all, func(a, b Metric) int { return cmp.Compare(a.Name, b.Name) })
	return all, nil
}

// Hold says where what a daemon has and its part of the list in the file differ; with update it writes that part.
func Hold(file, daemon string, have []Metric, update bool) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	start, end, err := part(string(text), daemon)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	want := table(have)
	switch stands := string(text[start:end]); {
	case stands == want:
		return nil
	case update:
		return os.WriteFile(file, []byte(string(text[:start])+want+string(text[end:])), 0o644)
	default:
		return fmt.Errorf("%s lists for %s\n%s\nand there are\n%s", file, daemon, stands, want)
	}
}

const tableHead = "| name | type | labels | meaning |\n| --- | --- | --- | --- |\n"

// part finds the table of a daemon: what stands between the head of the table and the next empty line.
func part(text, daemon string) (start, end int, err error) {
	at := strings.Index(text, "\n## "+daemon+"\n")
	if at < 0 {
		return 0, 0, fmt.Errorf("no part %q", daemon)
	}
	head := strings.Index(text[at:], tableHead)
	if next := strings.Index(text[at+1:], "\n## "); head < 0 || next >= 0 && next < head {
		return 0, 0, fmt.Errorf("no table under %q", daemon)
	}
	start = at + head
	if rows := strings.Index(text[start:], "\n\n"); rows >= 0 {
		return start, start + rows + 1, nil
	}
	return start, len(text), nil
}

func table(all []Metric) string {
	var b strings.Builder
	b.WriteString(tableHead)
	for _, m := range all {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", m.Name, m.Type, strings.Join(m.Labels, ", "), m.Help)
	}
	return b.String()
}

var rowPattern = regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| ([a-z]+) \\| ([a-z, ]*) \\| (.+) \\|$")

// Listed are all metrics of a list, of all daemons.
func Listed(text string) (all []Metric) {
	for _, m := range rowPattern.FindAllStringSubmatch(text, -1) {
		metric := Metric{Name: m[1], Type: m[2], Help: m[4]}
		if m[3] != "" {
			metric.Labels = strings.Split(m[3], ", ")
		}
		all = append(all, metric)
	}
	return all
}
