package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
)

// install writes the files below destdir. What users may have changed is written only where it is not there yet. Each appears whole, so that
// a daemon that runs keeps the command that it runs.
func install(destdir string, files []file) error {
	for _, f := range files {
		name := filepath.Join(destdir, f.path)
		if _, err := os.Lstat(name); f.users() && err == nil {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		fresh := name + ".new"
		if err := os.WriteFile(fresh, f.data, f.mode); err != nil {
			return err
		}
		if err := errors.Join(os.Chmod(fresh, f.mode), os.Rename(fresh, name)); err != nil {
			return err
		}
	}
	return nil
}

// uninstall removes the files, and the folders that are empty then; what a user changed stays, and is named.
func uninstall(destdir string, files []file) error {
	for _, f := range files {
		name := filepath.Join(destdir, f.path)
		if f.users() {
			have, err := os.ReadFile(name)
			if err == nil && !bytes.Equal(have, f.data) {
				fmt.Println(name, "was changed, and stays")
				continue
			}
		}
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for dir := path.Dir(f.path); path.Base(dir) == "holdfast" || path.Base(dir) == "monitor"; dir = path.Dir(dir) {
			if os.Remove(filepath.Join(destdir, dir)) != nil {
				break // something else is in it
			}
		}
	}
	return nil
}
