package main

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// file is one that is installed.
type file struct {
	path string // absolute, on the machine
	mode os.FileMode
	data []byte
}

// users says that people change it: it is never written over, and a package's upgrade asks.
func (f file) users() bool { return strings.HasPrefix(f.path, "/etc/") }

// daemons are the commands that services run.
var daemons = []string{"vra", "vra-filter", "vra-sidecar"}

// verifyUnit runs the user's command, once for each group that is proved on a schedule.
const verifyUnit = "holdfast-verify@.service"

// collect gathers everything that is installed below prefix, by path: the commands from bin, what they write themselves, and what stands in the tree at root.
func collect(root, bin, prefix string) (files []file, err error) {
	c := collector{root: root, prefix: path.Clean(prefix)}
	for _, name := range append([]string{"holdfast"}, daemons...) {
		c.from(0o755, filepath.Join(bin, name), "bin/"+name)
	}
	for _, name := range daemons {
		c.unit("cmd/"+name+"/"+name+".service", "lib/systemd/system/"+name+".service")
		c.add(0o644, "/etc/holdfast/"+name+".yaml", c.read(filepath.Join(root, "cmd", name, name+".yaml")))
		c.add(0o644, c.below("share/man/man8/"+name+".8.gz"), zipped(c.read(filepath.Join(root, "cmd", name, name+".8"))))
	}
	c.template("vra-filter")
	c.unit("cmd/holdfast/"+verifyUnit, "lib/systemd/system/"+verifyUnit)
	c.from(0o644, filepath.Join(root, "tools/packaging/holdfast.sysusers"), "lib/sysusers.d/holdfast.conf")
	for _, name := range []string{"METRICS.md", "dashboard.json", "alerts.yaml", "alerts.test.yaml"} {
		c.from(0o644, filepath.Join(root, "control/sidecar/monitor", name), "share/holdfast/monitor/"+name)
	}
	c.from(0o644, filepath.Join(root, "LICENSE"), "share/doc/holdfast/copyright")
	for _, name := range []string{"README.md", "ARCHITECTURE.md", "SECURITY.md", "control/api/API.md"} {
		c.from(0o644, filepath.Join(root, name), "share/doc/holdfast/"+path.Base(name))
	}
	c.written(filepath.Join(bin, "holdfast"))
	slices.SortFunc(c.files, func(a, b file) int { return strings.Compare(a.path, b.path) })
	return c.files, c.err
}

// collector gathers until something fails.
type collector struct {
	root, prefix string
	files        []file
	err          error
}

func (c *collector) below(name string) string { return path.Join(c.prefix, name) }

func (c *collector) add(mode os.FileMode, at string, data []byte) {
	c.files = append(c.files, file{at, mode, data})
}

func (c *collector) from(mode os.FileMode, name, to string) { c.add(mode, c.below(to), c.read(name)) }

func (c *collector) read(name string) []byte {
	if c.err != nil {
		return nil
	}
	var p []byte
	p, c.err = os.ReadFile(name)
	return p
}

// unit names the commands where they are installed.
func (c *collector) unit(name, to string) {
	text := c.read(filepath.Join(c.root, name))
	c.add(0o644, c.below(to), bytes.ReplaceAll(text, []byte("=/usr/bin/"), []byte("="+c.below("bin")+"/")))
}

// template adds a unit by which a daemon runs several times on a host: its instance NAME reads /etc/holdfast/DAEMON-NAME.yaml. It is made of
// the daemon's own unit, which stands in the tree.
func (c *collector) template(daemon string) {
	if c.err != nil {
		return
	}
	for _, f := range c.files {
		if f.path != c.below("lib/systemd/system/"+daemon+".service") {
			continue
		}
		text := f.data
		for was, is := range map[string]string{
			"/etc/holdfast/" + daemon + ".yaml": "/etc/holdfast/" + daemon + "-%i.yaml", "/" + daemon + ".log": "/" + daemon + "-%i.log",
			"Description=Holdfast filter": "Description=Holdfast filter %i", "systemctl edit " + daemon: "systemctl edit " + daemon + "@",
		} {
			if !bytes.Contains(text, []byte(was)) {
				panic("BUG: the unit of " + daemon + " does not say " + was)
			}
			text = bytes.ReplaceAll(text, []byte(was), []byte(is))
		}
		c.add(f.mode, c.below("lib/systemd/system/"+daemon+"@.service"), text)
		return
	}
}

// written adds the pages and completions that the user's command writes of itself.
func (c *collector) written(command string) {
	if c.err != nil {
		return
	}
	var dir string
	if dir, c.err = os.MkdirTemp("", "holdfast-packaging"); c.err != nil {
		return
	}
	defer os.RemoveAll(dir)
	c.output(command, "man", "--dir", dir)
	pages, err := filepath.Glob(filepath.Join(dir, "*.1"))
	if err != nil || len(pages) == 0 && c.err == nil {
		c.err = fmt.Errorf("%s writes no manual pages: %v", command, err)
	}
	for _, name := range pages {
		c.add(0o644, c.below("share/man/man1/"+filepath.Base(name)+".gz"), zipped(c.read(name)))
	}
	for shell, to := range map[string]string{
		"bash": "share/bash-completion/completions/holdfast", "zsh": "share/zsh/site-functions/_holdfast", "fish": "share/fish/vendor_completions.d/holdfast.fish",
	} {
		c.add(0o644, c.below(to), c.output(command, "completion", shell))
	}
}

func (c *collector) output(argv ...string) []byte {
	if c.err != nil {
		return nil
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	if !filepath.IsAbs(argv[0]) {
		cmd.Path, c.err = filepath.Abs(argv[0])
	}
	var said bytes.Buffer
	cmd.Stderr = &said
	p, err := cmd.Output()
	if err != nil {
		c.err = fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, said.Bytes())
	}
	return p
}

// zipped is the same for the same bytes.
func zipped(p []byte) []byte {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.DefaultCompression)
	if err == nil {
		_, err = z.Write(p)
	}
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		panic("BUG: memory cannot be written to: " + err.Error())
	}
	return b.Bytes()
}
