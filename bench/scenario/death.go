package scenario

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// Deaths says in one line when and why the daemon died last, how often it did, and
// where its log is; empty when it never died.
func (p *ProcessStatus) Deaths() string {
	if p.Restarts == 0 || p.LastDeath == nil {
		return ""
	}
	often := "died"
	if p.Restarts > 1 {
		often = fmt.Sprintf("died %d times, last", p.Restarts)
	}
	return fmt.Sprintf("%s at %s: %s; its log: %s", often, p.LastDeath.UTC().Format(time.RFC3339), p.LastExit, p.Log)
}

// whyDead adds to how a process ended what it said about it.
func whyDead(err error, program, log string, from int64) string {
	how := "it ended by itself"
	if err != nil {
		how = err.Error() // exit status 2; signal: killed
	}
	if words := lastWords(log, from, filepath.Base(program)); words != "" {
		how += ": " + words
	}
	return how
}

// searchBytes is how much of a log is searched for last words: the traces of many
// goroutines may follow them.
const searchBytes = logBytes

var traceBegins = regexp.MustCompile(`^(panic|fatal error|SIG[A-Z]+): `)

// lastWords finds in a log, from where the process began to write, the line with which
// the Go runtime begins its trace, and else the first in which the program names its
// error, as in "vra: listen: address already in use". Other lines are of no account:
// what was logged last need not be why it died.
func lastWords(path string, from int64, program string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return ""
	}
	if size < from {
		from = 0 // turned over meanwhile
	}
	if _, err := f.Seek(max(from, size-searchBytes), io.SeekStart); err != nil {
		return ""
	}
	said := ""
	for r := bufio.NewReader(io.LimitReader(f, searchBytes)); ; {
		line, err := r.ReadString('\n')
		switch {
		case traceBegins.MatchString(line):
			return lastOf(line)
		case said == "" && strings.HasPrefix(line, program+": "):
			said = lastOf(line)
		}
		if err != nil {
			return said
		}
	}
}
