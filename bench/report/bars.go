package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/holdfast-dr/holdfast/bench/bars"
)

const barsPreface = `
# Bars

What each area is held to, by the programs under ` + "`bench/bars`" + `. A figure is the median of its samples; a ratio is taken over interleaved
pairs, ours and the peer's, in one run. A miss is printed as a miss.
`

// renderBars draws the bars of each area that has samples.
func renderBars(b *strings.Builder, dir string) error {
	names, err := filepath.Glob(filepath.Join(dir, "bars-*.jsonl"))
	if err != nil || len(names) == 0 {
		return err
	}
	slices.Sort(names)
	b.WriteString(barsPreface)
	for _, name := range names {
		src, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		area := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(name), "bars-"), ".jsonl")
		if err := barsTable(b, area, string(src)); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func barsTable(b *strings.Builder, area, src string) error {
	rows, ok := bars.Areas[area]
	if !ok {
		return fmt.Errorf("no area is called %q", area)
	}
	head, samples, err := bars.Read(src)
	if err != nil {
		return err
	}
	results, err := bars.Collect(rows, samples)
	if err != nil {
		return err
	}
	writeHead(b, head)
	b.WriteString("\n" + bars.Table(results))
	return nil
}
