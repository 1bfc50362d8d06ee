// Command apidoc writes the reference of the API, control/api/API.md, from the comments of its
// .proto files, and refuses while a service, call, message or field has none.
//
//	apidoc [-check] [DIR]
//
// DIR is control/api unless it is given. It needs protoc.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

func main() {
	check := flag.Bool("check", false, "write nothing: say whether the page follows from the files")
	flag.Parse()
	dir := "control/api"
	if flag.NArg() > 0 {
		dir = flag.Arg(0)
	}
	if err := run(dir, *check); err != nil {
		fmt.Fprintln(os.Stderr, "apidoc:", err)
		os.Exit(1)
	}
}

func run(dir string, check bool) error {
	files, err := read(dir)
	if err != nil {
		return err
	}
	page, err := render(files)
	if err != nil {
		return err
	}
	name := filepath.Join(dir, "API.md")
	if !check {
		return os.WriteFile(name, page, 0o644)
	}
	have, err := os.ReadFile(name)
	if err == nil && !bytes.Equal(have, page) {
		err = fmt.Errorf("%s does not follow from the .proto files: run make generate", name)
	}
	return err
}

// read has protoc read all .proto files below dir, with their comments; in the order of their names.
func read(dir string) ([]protoreflect.FileDescriptor, error) {
	var names []string
	for _, pattern := range []string{"*.proto", "*/*.proto", "*/*/*.proto"} {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return nil, err
		}
		for _, f := range found {
			name, err := filepath.Rel(dir, f)
			if err != nil {
				return nil, err
			}
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("%s: no .proto file below it", dir)
	}
	slices.Sort(names)
	cmd := exec.Command("protoc", append([]string{"-I", ".", "--include_imports", "--include_source_info", "--descriptor_set_out=/dev/stdout"}, names...)...)
	cmd.Dir = dir
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("protoc: %w: %s", err, said.Bytes())
	}
	var set descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(out, &set); err != nil {
		return nil, fmt.Errorf("what protoc wrote: %w", err)
	}
	all, err := protodesc.NewFiles(&set)
	if err != nil {
		return nil, err
	}
	var files []protoreflect.FileDescriptor
	for _, name := range names {
		f, err := all.FindFileByPath(name)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

// errNoComment is what a service, call, message or field without a comment is refused with.
var errNoComment = errors.New("has no comment")
