package sidecar

import (
	"regexp"
	"strconv"
	"strings"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// removed stands where something was that looks like a secret.
const removed = "[removed]"

// redactor takes what looks like a secret out of a text, line by line: private keys, tokens of pairing, what
// is called a password, a secret or a token, and credentials in URLs and headers. It errs on the safe side: where a value ends only in
// its author's mind, all of the line goes. The zero value is ready.
type redactor struct {
	inKey  bool // within a private key
	nested bool // lines that are indented deeper than under are a secret's value
	under  int
	next   bool // the next line is a value: a flag, or the name of a variable, stood at the end of the last one
	quote  byte // of a value that the last line began and did not end; 0: none
	count  int  // of what was removed
}

const secretWord = `[A-Za-z0-9_.-]*(?i:passw(?:or)?[dt]|passphrase|passcode|pwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|credential|authorization|cookie|psk|jwt)[A-Za-z0-9_.-]*`

var (
	keyBegins = regexp.MustCompile(`-----BEGIN [A-Z0-9 ]*PRIVATE KEY[A-Z0-9 ]*-----`)
	keyEnds   = regexp.MustCompile(`-----END [A-Z0-9 ]*PRIVATE KEY[A-Z0-9 ]*-----`)
	keyBody   = regexp.MustCompile(`^\s*[A-Za-z0-9+/]{20,}={0,2}\s*$`) // of a key whose beginning was cut off

	// What a value follows: "name": value, name for x = value, --name value, "--name", "value", {"name": "NAME", "value": value}.
	secretName = regexp.MustCompile(`(?:` + secretWord + `|\b(?i:pass)\b)(\\*["'])?(?:[^:=,;"'\\]{0,32}[:=][:=>\s]*|\s*,\s*)|(?:^|[\s"'=])--?` + secretWord + `\s+`)
	secretLast = regexp.MustCompile(secretWord + `\\*["']?[\s,\])}]*$`)
	jsonWord   = regexp.MustCompile(`^(?:-?[0-9][0-9.eE+-]*|true|false|null)\s*(?:[}\]]|,\s*\\*"|$)`)
	escaped    = regexp.MustCompile(`\\+u00(?:[46][1-9a-fA-F]|[57][0-9aA]|2[dD]|5[fF])`) // a letter, - or _ of a JSON string

	secrets = []struct {
		pattern *regexp.Regexp
		with    string
	}{
		{regexp.MustCompile(`hfj[0-9]+-[A-Za-z0-9]+`), removed},                                                  // of pairing
		{regexp.MustCompile(`://[^\s"]*@`), "://" + removed + "@"},                                               // in URLs
		{regexp.MustCompile(`([^\s:/@"'=]:)(?:[^\s"/]|/[^\s"/])[^\s"]*@`), "${1}" + removed + "@"},               // user:password@host
		{regexp.MustCompile(`(?i)\b(bearer|basic)(\\*["']?[:\s]+)[A-Za-z0-9._~+/=-]{6,}`), "${1}${2}" + removed}, // in headers
	}
)

// line is one line without its end, without what looks like a secret.
func (r *redactor) line(s string) string {
	if invariant.Planted("control/sidecar/plain-secrets") {
		return s
	}
	if _, begins := lineTime(s); begins { // what is logged next is no part of what was logged before
		*r = redactor{count: r.count}
	}
	switch {
	case r.inKey:
		if at := keyEnds.FindStringIndex(s); at != nil {
			r.inKey = false
			return removed + r.line(s[at[1]:])
		}
		return removed
	case r.quote != 0:
		r.count++
		if strings.IndexByte(s, r.quote) >= 0 {
			r.quote = 0
		}
		return removed
	case r.next && strings.TrimSpace(s) != "":
		r.next = false
		r.count++
		return removed
	case r.nested:
		at := indent(s)
		if blank := at == len(s); blank || at > r.under || at == r.under && strings.HasPrefix(s[at:], "- ") {
			if blank {
				return s
			}
			r.count++
			return s[:at] + removed
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
	if keyBody.MatchString(s) {
		r.count++
		return removed
	}
	if strings.Contains(s, "u00") {
		s = escaped.ReplaceAllStringFunc(s, func(e string) string {
			n, _ := strconv.ParseUint(e[len(e)-2:], 16, 8) // two digits, as the pattern says
			return string(rune(n))
		})
	}
	s = r.values(s)
	for _, one := range secrets {
		if one.pattern.MatchString(s) {
			r.count++
			s = one.pattern.ReplaceAllString(s, one.with)
		}
	}
	return s
}

// values takes out the values of what is called a secret.
func (r *redactor) values(s string) string {
	var out strings.Builder
	under := indent(s)
	if strings.HasPrefix(s[under:], "- ") {
		under += 2
	}
	if !suspicious(s) {
		return s
	}
	r.next = secretLast.MatchString(s)
	for {
		at := secretName.FindStringSubmatchIndex(s)
		if at == nil {
			out.WriteString(s)
			return out.String()
		}
		out.WriteString(s[:at[1]])
		s = s[at[1]:]
		if opens := strings.TrimSpace(s); opens == "" || opens[0] == '|' || opens[0] == '>' || opens[0] == '#' {
			r.nested, r.under, r.next = true, under, false // the value stands below
			out.WriteString(s)
			return out.String()
		}
		end, quote := valueEnd(s, at[2] >= 0)
		r.count++
		out.WriteString(removed)
		if end == len(s) { // it may go on
			r.nested, r.under, r.quote = true, under, quote
		}
		s = s[end:]
	}
}

// valueEnd is where the value ends that s begins with: behind its closing quote, or with the line. quote is that of one which is not
// closed in this line. inJSON: a value without quotes may be a number, true or the like.
func valueEnd(s string, inJSON bool) (end int, quote byte) {
	escapes := len(s) - len(strings.TrimLeft(s, `\`)) // 2^n-1 of them before each quote, in the nth string within a string
	if escapes == len(s) || s[escapes] != '"' && s[escapes] != '\'' || escapes&(escapes+1) != 0 {
		if word := jsonWord.FindString(s); inJSON && word != "" {
			return len(strings.TrimRight(word, " \t,}]\\\"")), 0
		}
		return len(s), 0
	}
	q := s[escapes]
	run := 0
	for i := escapes + 1; i < len(s); i++ {
		switch {
		case s[i] == '\\':
			run++
			continue
		case s[i] == q && run%(2*(escapes+1)) == escapes:
			if i+1 == len(s) || strings.IndexByte(" \t,}]);&", s[i+1]) >= 0 || escapes > 0 && (s[i+1] == '"' || s[i+1] == '\\') {
				return i + 1, 0
			}
			return len(s), 0 // it goes on: 'it''s', "a"'b'
		}
		run = 0
	}
	if escapes > 0 {
		q = 0
	}
	return len(s), q
}

// indent is how many blanks a line begins with.
func indent(s string) int { return len(s) - len(strings.TrimLeft(s, " \t")) }

// pass takes note of a line that is not shown: what comes after it may be the rest of a secret.
func (r *redactor) pass(s string) {
	if r.inKey || r.nested || r.next || r.quote != 0 || suspicious(s) {
		count := r.count
		r.line(s)
		r.count = count
	}
}

// stems are in what secretName and keyBegins look for, whatever the case.
var stems = []string{"-----begin", "pass", "pwd", "psk", "secret", "token", "api", "access", "private", "credential", "authorization", "cookie", "jwt"}

// suspicious says whether a line may hold a name of a secret. It is quick, as all of a long log goes through it.
func suspicious(s string) bool {
	for i := range len(s) {
		switch s[i] | 0x20 {
		case '-', 'p', 's', 't', 'a', 'c', 'j':
			for _, stem := range stems {
				if len(s)-i >= len(stem) && strings.EqualFold(s[i:i+len(stem)], stem) {
					return true
				}
			}
		}
	}
	return strings.Contains(s, `u00`)
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
