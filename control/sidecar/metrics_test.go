package sidecar

import (
	"bytes"
	"cmp"
	"flag"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"log/slog"

	"github.com/holdfast-dr/holdfast/control/sidecar/monitor"
)

var update = flag.Bool("update", false, "write the list of metrics anew")

// TestMetricsAreListed: the list names what the sidecar has, and says what each is.
func TestMetricsAreListed(t *testing.T) {
	w := open(t, nil)
	w.car.count.refused("rate")
	m := &metrics{vra: w.car.vra, count: w.car.count, trust: w.car.trust.Load, began: time.Now()}
	var text bytes.Buffer
	m.append(&text, 1)
	var have []monitor.Metric
	for _, found := range regexp.MustCompile(`# HELP (\S+) (.*)\n# TYPE (\S+) (\S+)\n(\S+)`).FindAllStringSubmatch(text.String(), -1) {
		one := monitor.Metric{Name: found[1], Help: found[2], Type: found[4]}
		if _, label, ok := strings.Cut(found[5], "{"); ok {
			label, _, _ = strings.Cut(label, "=")
			one.Labels = []string{label}
		}
		have = append(have, one)
	}
	slices.SortFunc(have, func(a, b monitor.Metric) int { return cmp.Compare(a.Name, b.Name) })
	if len(have) < 6 {
		t.Errorf("only %d in %s", len(have), text.String())
	}
	if err := monitor.Hold("monitor/METRICS.md", "vra-sidecar", have, *update); err != nil {
		t.Error(err)
	}
}

// TestRefusalsDoNotFillTheLog: so many a second are logged, and then how many were not.
func TestRefusalsDoNotFillTheLog(t *testing.T) {
	now := time.Unix(1000, 0)
	var text bytes.Buffer
	log := slog.New(slog.NewTextHandler(&text, nil))
	q := &quiet{now: func() time.Time { return now }}
	for range 10 * linesPerSecond {
		q.warn(log, "no")
	}
	now = now.Add(time.Second)
	q.warn(log, "no")
	if n := strings.Count(text.String(), "msg=no"); n != linesPerSecond+1 || !strings.Contains(text.String(), "lines=90") {
		t.Errorf("%d lines:\n%s", n, text.String())
	}
}
