package sidecar

import (
	"regexp"
	"strings"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// removed stands where something was that looks like a secret.
const removed = "[removed]"

// redactor takes what looks like a secret out of a text, line by line: private keys, tokens of pairing, what
// is called a password, a secret or a token, and credentials in URLs and headers. It errs on the safe side. The zero value is ready.
type redactor struct {
	inKey  bool // within a private key
	under  int  // of YAML: lines that are indented deeper than this are a secret's value; -1 or 0 before the first
	nested bool
	count  int // of what was removed
}

var (
	keyBegins = regexp.MustCompile(`-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----`)
	keyEnds   = regexp.MustCompile(`-----END [A-Z0-9 ]*PRIVATE KEY-----`)

	secretWord = `[A-Za-z0-9_.-]*(?i:passw(?:or)?d|passphrase|passcode|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|credential|authorization|cookie)[A-Za-z0-9_.-]*`
	value      = `(?:"(?:[^"\\]|\\.)*"?|'[^']*'?|[^\s"',;}\])]+)`

	secrets = []struct {
		pattern *regexp.Regexp
		with    string
	}{
		{regexp.MustCompile(`hfj[0-9]+-[A-Za-z0-9]+`), removed},                                                            // of pairing
		{regexp.MustCompile(`://[^/\s"'@]+@`), "://" + removed + "@"},                                                      // in URLs
		{regexp.MustCompile(`(?i)\b(bearer|basic)(\\?["']?[:\s]+)[A-Za-z0-9._~+/=-]{6,}`), "${1}${2}" + removed},           // in headers
		{regexp.MustCompile(`(` + secretWord + `\\?["']?\s*[:=]\s*\\?)((?i:bearer|basic)\s+)?` + value), "${1}" + removed}, // name: value, name=value
		{regexp.MustCompile(`(--?` + secretWord + `["']?\s*,\s*|--?` + secretWord + `\s+)` + value), "${1}" + removed},     // --name value, "--name", "value"
	}
	secretAbove = regexp.MustCompile(`^(\s*(?:- )?)["']?` + secretWord + `["']?\s*:\s*(?:[|>][-+0-9]*)?\s*(?:#.*)?$`)
)

// line is one line without its end, without what looks like a secret.
func (r *redactor) line(s string) string {
	if invariant.Planted("control/sidecar/plain-secrets") {
		return s
	}
	if r.inKey {
		if at := keyEnds.FindStringIndex(s); at != nil {
			r.inKey = false
			return removed + r.line(s[at[1]:])
		}
		return removed
	}
	if r.nested {
		indent := len(s) - len(strings.TrimLeft(s, " "))
		if blank := strings.TrimSpace(s) == ""; blank || indent > r.under || indent == r.under && strings.HasPrefix(s[indent:], "- ") {
			if blank {
				return s
			}
			r.count++
			return strings.Repeat(" ", indent) + removed
		}
		r.nested = false
	}
	if at := keyBegins.FindStringIndex(s); at != nil {
		r.count++
		before := r.line(s[:at[0]])
		if end := keyEnds.FindStringIndex(s[at[1]:]); end != nil {
			return before + removed + r.line(s[at[1]+end[1]:])
		}
		r.inKey = true
		return before + removed
	}
	if m := secretAbove.FindStringSubmatch(s); m != nil {
		r.nested, r.under = true, len(m[1])
		return s
	}
	for _, one := range secrets {
		if one.pattern.MatchString(s) {
			r.count++
			s = one.pattern.ReplaceAllString(s, one.with)
		}
	}
	return s
}

// text is a whole text, line by line.
func (r *redactor) text(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		plain, ended := strings.CutSuffix(line, "\n")
		b.WriteString(r.line(plain))
		if ended {
			b.WriteByte('\n')
		}
	}
	return b.String()
}
