package main

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// set is one file of raw results.
type set struct {
	head  [][2]string // key and value of its "# key: value" lines, in order
	rows  []string    // names of benchmarks, in the order they first came
	units []string    // in the order they first came
	value map[[2]string][]float64
}

// parse reads what go test -bench printed. A run that failed is no result: it is refused.
func parse(src string) (set, error) {
	s := set{value: map[[2]string][]float64{}}
	for line := range strings.Lines(src) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "FAIL") || strings.HasPrefix(line, "--- FAIL") {
			return s, errors.New("the run failed: " + line)
		}
		if key, value, ok := strings.Cut(strings.TrimPrefix(line, "# "), ": "); ok && strings.HasPrefix(line, "# ") {
			s.head = append(s.head, [2]string{key, value})
		}
		if err := s.row(strings.Fields(line)); err != nil {
			return s, fmt.Errorf("%q: %w", line, err)
		}
	}
	if len(s.rows) == 0 {
		return s, errors.New("no benchmark stands in it")
	}
	return s, nil
}

// row takes one line "BenchmarkName-2 1 12.3 unit 4.5 unit", and no other.
func (s *set) row(w []string) error {
	if len(w) < 4 || !strings.HasPrefix(w[0], "Benchmark") || len(w)%2 != 0 {
		return nil
	}
	if _, err := strconv.Atoi(w[1]); err != nil {
		return nil
	}
	name := strings.TrimPrefix(w[0], "Benchmark")
	if i := strings.LastIndexByte(name, '-'); i > 0 {
		if _, err := strconv.Atoi(name[i+1:]); err == nil {
			name = name[:i]
		}
	}
	if !slices.Contains(s.rows, name) {
		s.rows = append(s.rows, name)
	}
	for i := 2; i < len(w); i += 2 {
		v, err := strconv.ParseFloat(w[i], 64)
		if err != nil {
			return err
		}
		unit := w[i+1]
		if unit == "ns/op" {
			continue // the time of a whole run, set-up included: it says nothing
		}
		if !slices.Contains(s.units, unit) {
			s.units = append(s.units, unit)
		}
		s.value[[2]string{name, unit}] = append(s.value[[2]string{name, unit}], v)
	}
	return nil
}

// table draws the set.
func (s *set) table(b *strings.Builder) {
	writeHead(b, s.head)
	b.WriteString("\n| run |")
	for _, u := range s.units {
		fmt.Fprintf(b, " %s |", u)
	}
	b.WriteString("\n| --- |" + strings.Repeat(" ---: |", len(s.units)) + "\n")
	for _, name := range s.rows {
		fmt.Fprintf(b, "| %s |", name)
		for _, u := range s.units {
			fmt.Fprintf(b, " %s |", spread(s.value[[2]string{name, u}]))
		}
		b.WriteString("\n")
	}
}

// spread writes "median (lowest-highest)", or a dash where nothing was measured.
func spread(v []float64) string {
	if len(v) == 0 {
		return "-"
	}
	v = slices.Sorted(slices.Values(v))
	median := v[len(v)/2]
	if len(v)%2 == 0 {
		median = (v[len(v)/2-1] + median) / 2
	}
	if len(v) == 1 {
		return number(median)
	}
	return fmt.Sprintf("%s (%s-%s)", number(median), number(v[0]), number(v[len(v)-1]))
}

// number keeps three figures that count.
func number(v float64) string {
	if v == 0 {
		return "0"
	}
	digits := 2 - int(math.Floor(math.Log10(math.Abs(v))))
	return strconv.FormatFloat(v, 'f', max(0, min(digits, 4)), 64)
}

// writeHead draws the title and, a line each, what else is known of the run.
func writeHead(b *strings.Builder, head [][2]string) {
	title := "Results"
	var rest []string
	for _, h := range head {
		if h[0] == "title" {
			title = h[1]
		} else if h[0] == "command" {
			rest = append(rest, "Command: `"+h[1]+"`.")
		} else {
			rest = append(rest, strings.ToUpper(h[0][:1])+h[0][1:]+": "+h[1]+".")
		}
	}
	fmt.Fprintf(b, "\n## %s\n\n%s\n", title, strings.Join(rest, "  \n"))
}
