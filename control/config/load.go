package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
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
		return mistakesIn(path, err)
	}
	return nil
}

// parse decodes and validates; all mistakes of both are in the error.
func parse(text []byte, c validated) error {
	if len(text) > maxFile {
		return fmt.Errorf("longer than %s", Size(maxFile))
	}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(!invariant.Planted("config/unknown-key"))
	err := dec.Decode(c)
	var te *yaml.TypeError
	switch {
	case errors.Is(err, io.EOF):
		err = nil // an empty file: validation says what is missing
	case errors.As(err, &te):
		all := make([]error, len(te.Errors))
		for i, text := range te.Errors {
			all[i] = errors.New(plain(text))
		}
		err = errors.Join(all...)
	case err != nil:
		return err // not YAML: nothing was read
	}
	if err == nil && dec.Decode(new(yaml.Node)) != io.EOF {
		err = errors.New("more than one document in the file")
	}
	if err != nil && invariant.Planted("config/first-mistakes") {
		return err
	}
	return errors.Join(err, c.Validate())
}

// plain takes Go's type names out of the decoder's words.
func plain(text string) string {
	if at, _, ok := strings.Cut(text, " not found in type "); ok {
		return strings.Replace(at, "field ", "unknown key ", 1)
	}
	return text
}

// mistakesIn puts the file's name before each line.
func mistakesIn(path string, err error) error {
	lines := strings.Split(err.Error(), "\n")
	for i, line := range lines {
		lines[i] = path + ": " + line
	}
	return errors.New(strings.Join(lines, "\n"))
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

// mistakes gathers what Validate finds.
type mistakes []error

func (m *mistakes) add(where, format string, args ...any) {
	*m = append(*m, fmt.Errorf("%s: %s", where, fmt.Sprintf(format, args...)))
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
	if v != unread && (v < low || v > high) {
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

func (m mistakes) err() error { return errors.Join(m...) }
