package main

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/holdfast-dr/holdfast/control/config"
)

func (a *app) checkOutput() error {
	if a.output != "table" && a.output != "json" {
		return usagef("--output %q: want table or json", a.output)
	}
	return nil
}

// print writes a result: v as JSON, or the rows as a table under head. A table
// without rows is its head alone.
func (a *app) print(v any, head string, rows [][]string) error {
	if a.output == "json" {
		enc := json.NewEncoder(a.stdout)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	if head != "" {
		fmt.Fprintln(w, strings.Join(strings.Fields(head), "\t"))
	}
	for _, row := range rows {
		for i, cell := range row {
			row[i] = printable(cell)
		}
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	return w.Flush()
}

// printable writes what a terminal would obey, or not show, as Go escapes: tags and
// messages may come from others.
func printable(text string) string {
	fine := func(r rune) bool { return unicode.IsPrint(r) }
	if utf8.ValidString(text) && strings.IndexFunc(text, func(r rune) bool { return !fine(r) }) < 0 {
		return text
	}
	var b strings.Builder
	for i, r := range text {
		switch _, n := utf8.DecodeRuneInString(text[i:]); {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, text[i])
		case fine(r):
			b.WriteRune(r)
		default:
			quoted := strconv.QuoteRune(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		}
	}
	return b.String()
}

// timeFormat is RFC 3339 in UTC with milliseconds.
const timeFormat = "2006-01-02T15:04:05.000Z"

// optional values: nil is null in JSON and a hyphen in a table.
func timeText(t time.Time) *string {
	if t.IsZero() {
		return nil
	}
	s := t.UTC().Format(timeFormat)
	return &s
}

func textOrNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// shortTime is a time of such a text to the second, for tables; JSON keeps all of it.
func shortTime(s *string) string {
	if s == nil {
		return "-"
	}
	if at := strings.LastIndexByte(*s, '.'); at > 0 {
		return (*s)[:at] + "Z"
	}
	return *s
}

func orHyphen(s *string) string {
	if s == nil {
		return "-"
	}
	return *s
}

func intOrHyphen(n *int64) string {
	if n == nil {
		return "-"
	}
	return strconv.FormatInt(*n, 10)
}

func secondsOrHyphen(s *float64) string {
	if s == nil {
		return "-"
	}
	return fmt.Sprintf("%.1f s", *s)
}

func bytesOrHyphen(n *int64) string {
	if n == nil {
		return "-"
	}
	return bytesText(*n)
}

// bytesText writes a number of bytes for people.
func bytesText(n int64) string { return config.Size(n).Text() }
