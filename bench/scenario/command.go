package scenario

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// Command is a command line of holdfast for the user to run: with the path of the
// running program where a shell would find another or none, and quoted for a shell.
func Command(args ...string) string {
	words := []string{Quote(self())}
	for _, arg := range args {
		words = append(words, Quote(arg))
	}
	return strings.Join(words, " ")
}

func self() string {
	const name = "holdfast"
	path, err := os.Executable()
	if err != nil {
		return name
	}
	found, err := exec.LookPath(name)
	if err != nil {
		return path
	}
	if found, err = filepath.EvalSymlinks(found); err != nil || found != realPath(path) {
		return path
	}
	return name
}

func realPath(path string) string {
	if to, err := filepath.EvalSymlinks(path); err == nil {
		return to
	}
	return path
}

var plainWord = regexp.MustCompile(`^[A-Za-z0-9_@%+=:,./-]+$`)

// Quote writes a word so that a shell reads it back as it is.
func Quote(word string) string {
	if plainWord.MatchString(word) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
