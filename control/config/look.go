package config

import (
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"go.yaml.in/yaml/v3"
)

// sight is what a look at a file's text found, before its values are used: which key
// stands on which line, and what is of the wrong kind or not known at all.
type sight struct {
	lines   map[string]int
	refused map[string]bool // paths that have been complained about
	found   mistakes
}

// look compares the text with the type of c.
func look(root *yaml.Node, c any) *sight {
	s := &sight{lines: map[string]int{}, refused: map[string]bool{}}
	if root.Kind == yaml.DocumentNode && len(root.Content) == 1 {
		s.value("", root.Content[0], reflect.TypeOf(c).Elem())
	}
	return s
}

func (s *sight) add(where string, line int, format string, args ...any) {
	s.refused[where] = true
	s.found = append(s.found, mistake{line, where, fmt.Sprintf(format, args...)})
}

// value looks at what stands at a path, to be read as a t.
func (s *sight) value(where string, n *yaml.Node, t reflect.Type) {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	// What is absent is for validation; a thing named elsewhere was seen there.
	if n.Kind == yaml.AliasNode || n.Tag == "!!null" {
		return
	}
	if v, ok := reflect.New(t).Interface().(yaml.Unmarshaler); ok {
		if err := v.UnmarshalYAML(n); err != nil {
			text := err.Error()
			if te, ok := errors.AsType[*yaml.TypeError](err); ok {
				text = strings.Join(te.Errors, "; ")
			}
			s.add(where, n.Line, "%s", text)
		}
		return
	}
	switch t.Kind() {
	case reflect.Struct:
		if s.wants(where, n, yaml.MappingNode, "keys and their values, as in key: value") {
			s.keys(where, n, t)
		}
	case reflect.Map:
		if s.wants(where, n, yaml.MappingNode, "keys and their values, as in key: value") {
			for i := 0; i+1 < len(n.Content); i += 2 {
				s.value(where+"."+n.Content[i].Value, n.Content[i+1], t.Elem())
			}
		}
	case reflect.Slice:
		if s.wants(where, n, yaml.SequenceNode, "a list, each line of it with a hyphen") {
			for i, item := range n.Content {
				at := fmt.Sprintf("%s[%d]", where, i)
				s.lines[at] = item.Line
				s.value(at, item, t.Elem())
			}
		}
	default:
		if s.wants(where, n, yaml.ScalarNode, "one word") && n.Decode(reflect.New(t).Interface()) != nil {
			s.add(where, n.Line, "%q: want a whole number", n.Value)
		}
	}
}

// wants refuses a node of the wrong kind.
func (s *sight) wants(where string, n *yaml.Node, kind yaml.Kind, what string) bool {
	if n.Kind == kind {
		return true
	}
	have := fmt.Sprintf("%q", n.Value)
	switch n.Kind {
	case yaml.SequenceNode:
		have = "a list"
	case yaml.MappingNode:
		have = "keys and their values"
	}
	s.add(where, n.Line, "want %s, not %s", what, have)
	return false
}

// keys looks at the keys of a struct.
func (s *sight) keys(where string, n *yaml.Node, t reflect.Type) {
	fields := map[string]reflect.Type{}
	var names []string
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		fields[name], names = f.Type, append(names, name)
	}
	under := func(key string) string { return strings.TrimPrefix(where+"."+key, ".") }
	var unknown []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if field, ok := fields[key.Value]; ok {
			s.lines[under(key.Value)] = key.Line
			s.value(under(key.Value), n.Content[i+1], field)
		} else if key.Tag != "!!merge" && !invariant.Planted("config/unknown-key") {
			unknown = append(unknown, key)
		}
	}
	for _, key := range unknown {
		absent := func(name string) bool { return s.lines[under(name)] == 0 }
		meant := nearest(key.Value, names, absent)
		if meant != "" {
			s.refused[under(meant)] = true // then it is not missing as well
		} else if meant = nearest(key.Value, names, func(string) bool { return true }); meant == "" {
			s.add(under(key.Value), key.Line, "unknown key")
			continue
		}
		s.add(under(key.Value), key.Line, "unknown key: did you mean %s?", meant)
	}
}

// nearest is the name that a word was meant to be, of those that ok; empty when none
// is near enough.
func nearest(word string, names []string, ok func(string) bool) string {
	best, found := 3, ""
	for _, name := range names {
		if d := distance(word, name); d < best && ok(name) {
			best, found = d, name
		}
	}
	return found
}

// distance is how many letters must be put in, taken out or changed to make a from b;
// 3 for all that is further apart.
func distance(a, b string) int {
	const far = 3
	if len(a)-len(b) >= far || len(b)-len(a) >= far {
		return far
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		above := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := above
			if a[i] != b[j] {
				cost++
			}
			above = row[j+1]
			row[j+1] = min(cost, row[j]+1, above+1)
		}
	}
	return min(row[len(b)], far)
}

// others adds what only the decoder saw.
func (s *sight) others(err error) {
	var te *yaml.TypeError
	if !errors.As(err, &te) {
		s.add("", 0, "%s", strings.TrimPrefix(err.Error(), "yaml: "))
		return
	}
	seen := len(s.found) > 0
	for _, text := range te.Errors {
		if seen && !strings.Contains(text, "already defined at") {
			continue // look told of it, in better words
		}
		line := 0
		if m := atLine.FindStringSubmatch(text); m != nil {
			line, _ = strconv.Atoi(m[1])
			text = m[2]
		}
		s.add("", line, "%s", text)
	}
}

var atLine = regexp.MustCompile(`(?s)^line ([0-9]+): (.*)$`)

// validate adds what validation found, with lines, and without what was said already.
func (s *sight) validate(err error) {
	if err == nil {
		return
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		s.add("", 0, "%v", err)
		return
	}
	for _, err := range joined.Unwrap() {
		m, ok := err.(mistake)
		if !ok {
			m = mistake{text: err.Error()}
		}
		above := slices.Collect(pathsAbove(m.where))
		if slices.ContainsFunc(above, func(p string) bool { return s.refused[p] }) {
			continue
		}
		for _, p := range above {
			if m.line = s.lines[p]; m.line > 0 {
				break
			}
		}
		s.found = append(s.found, m)
	}
}

// pathsAbove gives a path, and what it is inside of.
func pathsAbove(path string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for path != "" && yield(path) {
			path = path[:max(0, strings.LastIndexAny(path, ".["))]
		}
	}
}
