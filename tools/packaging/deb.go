package main

import (
	"archive/tar"
	"bytes"
	"crypto/md5"
	"embed"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"
)

// control is what a package says of itself.
type control struct{ version, architecture string }

//go:embed debian
var scripts embed.FS

// deb makes a package of the files: an archive of the format version, of what dpkg is told, and of the files, which all belong to
// root and are of one time.
func deb(files []file, c control, at time.Time) ([]byte, error) {
	size := 0
	var sums, conffiles strings.Builder
	for _, f := range files {
		size += (len(f.data) + 1023) / 1024
		fmt.Fprintf(&sums, "%x  %s\n", md5.Sum(f.data), strings.TrimPrefix(f.path, "/"))
		if f.users() {
			fmt.Fprintln(&conffiles, f.path)
		}
	}
	told := []file{
		{"/conffiles", 0o644, []byte(conffiles.String())},
		{"/control", 0o644, fmt.Appendf(nil, `Package: holdfast
Version: %s
Architecture: %s
Maintainer: Holdfast maintainers <maintainers@holdfast-dr.invalid>
Installed-Size: %d
Depends: systemd | systemd-standalone-sysusers
Section: admin
Priority: optional
Homepage: https://github.com/holdfast-dr/holdfast
Description: continuous replication and recovery of virtual machines
 Holdfast copies every write of running virtual machines to a second site, keeps
 it in a journal with a checkpoint every few seconds, and opens a group of disks
 at any of them.
 .
 This package has the daemons of both sites and the user's command. No service
 is started or enabled.
`, c.version, c.architecture, size)},
		{"/md5sums", 0o644, []byte(sums.String())},
	}
	for _, name := range []string{"postinst", "postrm", "prerm"} {
		p, err := scripts.ReadFile("debian/" + name)
		if err != nil {
			return nil, err
		}
		told = append(told, file{"/" + name, 0o755, p})
	}
	var b bytes.Buffer
	b.WriteString("!<arch>\n")
	member(&b, "debian-binary", []byte("2.0\n"), at)
	for _, part := range []struct {
		name  string
		files []file
	}{{"control.tar.gz", told}, {"data.tar.gz", files}} {
		p, err := archive(part.files, at)
		if err != nil {
			return nil, err
		}
		member(&b, part.name, zipped(p), at)
	}
	return b.Bytes(), nil
}

// member adds one to an archive as ar writes it: a header in text, and an even number of bytes.
func member(b *bytes.Buffer, name string, p []byte, at time.Time) {
	fmt.Fprintf(b, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", name, at.Unix(), 0, 0, "100644", len(p))
	b.Write(p)
	if len(p)%2 == 1 {
		b.WriteByte('\n')
	}
}

// archive is a tar of the files, in the order of their paths, each folder before what is in it.
func archive(files []file, at time.Time) ([]byte, error) {
	files = slices.Clone(files)
	slices.SortFunc(files, func(a, b file) int { return strings.Compare(a.path, b.path) })
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	header := func(h tar.Header) error {
		h.ModTime, h.Format, h.Uname, h.Gname = at, tar.FormatGNU, "root", "root"
		return w.WriteHeader(&h)
	}
	if err := header(tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755}); err != nil {
		return nil, err
	}
	made := map[string]bool{"/": true}
	for _, f := range files {
		var folders []string
		for dir := path.Dir(f.path); !made[dir]; dir = path.Dir(dir) {
			made[dir] = true
			folders = append(folders, dir)
		}
		slices.Reverse(folders)
		for _, dir := range folders {
			if err := header(tar.Header{Typeflag: tar.TypeDir, Name: "." + dir + "/", Mode: 0o755}); err != nil {
				return nil, err
			}
		}
		if err := header(tar.Header{Typeflag: tar.TypeReg, Name: "." + f.path, Mode: int64(f.mode), Size: int64(len(f.data))}); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return b.Bytes(), err
}
