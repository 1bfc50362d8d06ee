package journal

import (
	"slices"
	"strings"
)

// oneLine returns the error with a text of one line, in which nothing is said twice: states
// are shown as lines.
func oneLine(err error) error {
	if err == nil || !strings.Contains(err.Error(), "\n") {
		return err
	}
	var said []string
	for line := range strings.SplitSeq(err.Error(), "\n") {
		line = strings.TrimSpace(line)
		if !slices.ContainsFunc(said, func(s string) bool { return strings.HasSuffix(s, line) }) {
			said = append(said, line)
		}
	}
	return &lineError{err, strings.Join(said, "; ")}
}

// lineError is an error in other words.
type lineError struct {
	err  error
	text string
}

func (e *lineError) Error() string { return e.text }
func (e *lineError) Unwrap() error { return e.err }
