package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"go.yaml.in/yaml/v3"
)

// maxFile is the longest configuration file that is read, in bytes.
const maxFile = 4 << 20

// validated is a configuration that fills its defaults and tells its mistakes.
type validated interface{ Validate() error }

// load reads and validates the file at path into c.
func load(path string, c validated) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return err
	}
	if err := parse(text, c); err != nil {
		return InFile(path, err)
	}
	return nil
}

// parse decodes and validates; all mistakes of both are in the error, each once and in
// the order of the lines.
func parse(text []byte, c validated) error {
	if len(text) > maxFile {
		return fmt.Errorf("longer than %s", Size(maxFile))
	}
	var root yaml.Node
	if err := yaml.NewDecoder(bytes.NewReader(text)).Decode(&root); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("not YAML: %s", strings.TrimPrefix(err.Error(), "yaml: "))
	} // an empty file: validation says what is missing
	s := look(&root, c)
	// What look refused is refused here too, and stays zero; the rest is read.
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(!invariant.Planted("config/unknown-key"))
	if err := dec.Decode(c); err != nil && !errors.Is(err, io.EOF) {
		s.others(err)
	}
	if dec.Decode(new(yaml.Node)) != io.EOF {
		s.add("", 0, "more than one document in the file")
	}
	if len(s.found) > 0 && invariant.Planted("config/first-mistakes") {
		return s.found.err()
	}
	s.validate(c.Validate())
	slices.SortStableFunc(s.found, func(a, b mistake) int { return a.line - b.line })
	return s.found.err()
}

// InFile puts the file's name before each line.
func InFile(path string, err error) error {
	return errors.New(path + ": " + strings.ReplaceAll(err.Error(), "\n", "\n"+path+": "))
}

// Marshal writes a configuration as YAML.
func Marshal(c any) ([]byte, error) {
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(c); err != nil {
		return nil, err
	}
	return b.Bytes(), enc.Close()
}

// mistake is one thing that is wrong with a configuration.
type mistake struct {
	line  int    // 0 when it has none
	where string // the path of the key, as in volumes[0].id
	text  string
}

func (m mistake) Error() string {
	text := m.text
	if m.where != "" {
		text = m.where + ": " + text
	}
	if m.line > 0 {
		text = fmt.Sprintf("line %d: %s", m.line, text)
	}
	return text
}

// mistakes gathers what is found.
type mistakes []mistake

func (m *mistakes) add(where, format string, args ...any) {
	*m = append(*m, mistake{where: where, text: fmt.Sprintf(format, args...)})
}

func (m mistakes) err() error {
	all := make([]error, len(m))
	for i, one := range m {
		all[i] = one
	}
	return errors.Join(all...)
}

func (m *mistakes) name(where, value string) {
	if value == "" {
		m.add(where, "is missing")
	} else if err := CheckName(value); err != nil {
		m.add(where, "%v", err)
	}
}

func (m *mistakes) id(where string, id ID) {
	if id == 0 {
		m.add(where, "is missing")
	}
}

// within checks a value that has its default already.
func within[T ~int64](m *mistakes, where string, v, low, high T) {
	if v < low || v > high {
		m.add(where, "%v is not between %v and %v", v, low, high)
	}
}

// unique refuses a value seen before.
func unique[T comparable](m *mistakes, seen map[T]string, where string, v, none T) {
	if v == none {
		return
	}
	if first, ok := seen[v]; ok {
		m.add(where, "%v is taken by %s", v, first)
		return
	}
	seen[v] = where
}
