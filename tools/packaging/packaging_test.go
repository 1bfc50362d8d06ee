package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/config"
)

const root = "../.."

// built are the commands, built twice as the package has them.
var built = sync.OnceValues(func() (dirs [2]string, err error) {
	for i := range dirs {
		if dirs[i], err = os.MkdirTemp("", "holdfast-packaging"); err != nil {
			return dirs, err
		}
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", dirs[i]+"/", "./cmd/...")
		cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return dirs, fmt.Errorf("%w: %s", err, out)
		}
	}
	return dirs, nil
})

func TestMain(m *testing.M) {
	scratch, err := os.MkdirTemp("", "holdfast-packaging")
	if err == nil {
		err = os.Setenv("TMPDIR", scratch) // where the commands are built
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(scratch)
	os.Exit(code)
}

func commands(t *testing.T, nth int) string {
	t.Helper()
	dirs, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return dirs[nth]
}

func gathered(t *testing.T, nth int, prefix string) []file {
	t.Helper()
	files, err := collect(root, commands(t, nth), prefix)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func command(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v\n%s", argv, err, out)
	}
	return string(out)
}

func needs(t *testing.T, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Skip(program, " is not installed: ", err)
	}
}

// TestPackage builds all twice and compares; looks at the package with dpkg's own tools, installs, upgrades and purges it in a root of its own, and runs
// what is there.
func TestPackage(t *testing.T) {
	needs(t, "dpkg-deb")
	at := time.Unix(1700000000, 0).UTC()
	c := control{"1.2-3", "amd64"}
	arch := strings.TrimSpace(command(t, "dpkg", "--print-architecture"))
	c.architecture = arch
	first, err := deb(gathered(t, 0, "/usr"), c, at)
	if err != nil {
		t.Fatal(err)
	}
	second, err := deb(gathered(t, 1, "/usr"), c, at)
	if err != nil || !bytes.Equal(first, second) {
		t.Errorf("two builds differ: %d and %d bytes, %v", len(first), len(second), err)
	}
	dir := t.TempDir()
	name := filepath.Join(dir, "holdfast.deb")
	write(t, name, first)
	if out := command(t, "dpkg-deb", "-f", name, "Package", "Version", "Architecture"); out != "Package: holdfast\nVersion: 1.2-3\nArchitecture: "+arch+"\n" {
		t.Errorf("it says of itself %s", out)
	}
	list := command(t, "dpkg-deb", "-c", name)
	for line := range strings.Lines(list) {
		if fields := strings.Fields(line); fields[1] != "root/root" || fields[3] != "2023-11-14" || strings.Contains(fields[0][1:], "s") || fields[0][8] == 'w' {
			t.Errorf("in the package: %s", line)
		}
	}
	for _, want := range []string{
		"./usr/bin/vra", "./usr/bin/vra-filter", "./usr/bin/holdfast", "./usr/lib/systemd/system/vra.service", "./usr/lib/systemd/system/vra-filter@.service", "./usr/lib/sysusers.d/holdfast.conf",
		"./usr/share/man/man8/vra.8.gz", "./usr/share/man/man1/holdfast-status.1.gz", "./usr/share/bash-completion/completions/holdfast",
		"./usr/share/holdfast/monitor/dashboard.json", "./usr/share/holdfast/monitor/alerts.yaml", "./etc/holdfast/vra.yaml", "./usr/share/doc/holdfast/copyright",
	} {
		if !strings.Contains(list, " "+want+"\n") {
			t.Errorf("no %s in the package", want)
		}
	}
	// Another release, to upgrade to.
	changed := gathered(t, 0, "/usr")
	for i, f := range changed {
		if f.users() {
			changed[i].data = append(slices.Clone(f.data), "# a newer release\n"...)
		} else if strings.HasPrefix(f.path, "/usr/bin/") {
			changed[i].data = []byte("#!/bin/sh\n") // so that it is made at once
		}
	}
	c.version = "1.3-1"
	newer, err := deb(changed, c, at)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "newer.deb"), newer)
	lifeOfAPackage(t, dir, name)
}

// lifeOfAPackage: dpkg itself carries a package through install, upgrade, removal and purge, in a root of its own.
func lifeOfAPackage(t *testing.T, dir, name string) {
	r := filepath.Join(dir, "root")
	for _, sub := range []string{"var/lib/dpkg/updates", "var/lib/dpkg/info", "var/lib/holdfast", "etc"} {
		if err := os.MkdirAll(filepath.Join(r, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(r, "var/lib/dpkg/status"), nil)
	write(t, filepath.Join(r, "var/lib/holdfast/journal"), []byte("the last copy"))
	dpkg := func(args ...string) string {
		t.Helper()
		return command(t, append([]string{"dpkg", "--root=" + r, "--log=/dev/null", "--force-not-root", "--force-depends", "--force-script-chrootless", "--force-confold"}, args...)...)
	}
	dpkg("-i", name)
	for _, p := range append([]string{"holdfast"}, daemons...) {
		argv := []string{filepath.Join(r, "usr/bin", p), "--version"}
		if out := command(t, argv...); !strings.HasPrefix(out, p+" ") {
			t.Errorf("%s --version: %s", p, out)
		}
	}
	if users := read(t, filepath.Join(r, "etc/passwd")); !strings.HasPrefix(users, "holdfast:") {
		t.Errorf("users %q", users)
	}
	if enabled, err := filepath.Glob(filepath.Join(r, "etc/systemd/system/*.wants/*")); err != nil || len(enabled) > 0 {
		t.Errorf("enabled: %q, %v", enabled, err)
	}
	mine, theirs := filepath.Join(r, "etc/holdfast/vra.yaml"), filepath.Join(r, "etc/holdfast/vra-filter.yaml")
	write(t, mine, []byte("mine\n"))
	dpkg("-i", filepath.Join(dir, "newer.deb"))
	if read(t, mine) != "mine\n" || !strings.HasSuffix(read(t, theirs), "# a newer release\n") {
		t.Error("an upgrade keeps what was changed, and takes the rest to the new release")
	}
	dpkg("-r", "holdfast")
	if _, err := os.Stat(filepath.Join(r, "usr/bin/vra")); err == nil || read(t, mine) != "mine\n" {
		t.Errorf("after removal: %v", err)
	}
	said := dpkg("-P", "holdfast")
	if _, err := os.Stat(filepath.Join(r, "etc/holdfast")); err == nil || read(t, filepath.Join(r, "var/lib/holdfast/journal")) != "the last copy" || !strings.Contains(said, "stays") {
		t.Errorf("after a purge: %v, %s", err, said)
	}
}

// TestInstall: what is installed below a prefix names that prefix, what a user changed outlives both, and nothing else does.
func TestInstall(t *testing.T) {
	files, dest := gathered(t, 0, "/opt/h"), t.TempDir()
	mine := filepath.Join(dest, "etc/holdfast/vra.yaml")
	for range 2 {
		if err := install(dest, files); err != nil {
			t.Fatal(err)
		}
		write(t, mine, []byte("mine\n"))
	}
	if read(t, mine) != "mine\n" || read(t, filepath.Join(dest, "etc/holdfast/vra-filter.yaml")) == "" {
		t.Error("files of users")
	}
	if unit := read(t, filepath.Join(dest, "opt/h/lib/systemd/system/vra.service")); !strings.Contains(unit, "\nExecStart=/opt/h/bin/vra ") || strings.Contains(unit, "/usr/bin/vra") {
		t.Errorf("the unit says %s", unit)
	}
	if st, err := os.Stat(filepath.Join(dest, "opt/h/bin/vra")); err != nil || st.Mode() != 0o755 {
		t.Error(st, err)
	}
	if err := uninstall(dest, files); err != nil {
		t.Fatal(err)
	}
	var left []string
	err := filepath.WalkDir(dest, func(name string, e os.DirEntry, err error) error {
		if err == nil && (!e.IsDir() || e.Name() == "monitor") {
			left = append(left, strings.TrimPrefix(name, dest))
		}
		return err
	})
	if err != nil || !slices.Equal(left, []string{"/etc/holdfast/vra.yaml"}) {
		t.Errorf("left %q, %v", left, err)
	}
	if err := uninstall(dest, files); err != nil {
		t.Errorf("again: %v", err)
	}
}

// TestUnits: systemd's own judgement of how far the services are shut in, and that it reads every line.
func TestUnits(t *testing.T) {
	needs(t, "systemd-analyze")
	dir := t.TempDir()
	for _, f := range gathered(t, 0, "/usr") {
		if strings.HasSuffix(f.path, ".service") {
			write(t, filepath.Join(dir, filepath.Base(f.path)), f.data)
		}
	}
	for name, most := range map[string]int{"vra": 20, "vra-filter": 40, "vra-filter@": 40, "vra-sidecar": 20} {
		unit := filepath.Join(dir, name+".service")
		t.Log(name, strings.TrimSpace(lastLine(command(t, "systemd-analyze", "security", "--offline=true", "--no-pager", fmt.Sprintf("--threshold=%d", most), unit))))
		if name == "vra-filter@" { // as one of its instances
			for _, want := range []string{"--config /etc/holdfast/vra-filter-%i.yaml --check-config\n", "--config /etc/holdfast/vra-filter-%i.yaml --log-file /var/log/holdfast/vra-filter-%i.log\n"} {
				if !strings.Contains(read(t, unit), want) {
					t.Errorf("%s has no %q", unit, want)
				}
			}
			name = "vra-filter@shop"
			write(t, filepath.Join(dir, name+".service"), []byte(read(t, unit)))
			unit = filepath.Join(dir, name+".service")
		}
		text := regexp.MustCompile(`/usr/bin/[a-z-]+`).ReplaceAllString(read(t, unit), "/bin/true")
		checked := t.TempDir()
		write(t, filepath.Join(checked, name+".service"), []byte(regexp.MustCompile(`(?m)^Documentation=.*\n`).ReplaceAllString(text, "")))
		if out := command(t, "systemd-analyze", "verify", "--man=no", filepath.Join(checked, name+".service")); strings.Contains(out, name+".service:") {
			t.Errorf("systemd says %s", out)
		}
		for _, want := range []string{"\nType=notify\n", "\nExecReload=", "\nRestart=always\n", "\nStartLimitIntervalSec=0\n", "\nUser=holdfast\n", "\nRuntimeDirectoryMode=0711\n", "--check-config\n", " --log-file /var/log/holdfast/"} {
			if !strings.Contains(text, want) {
				t.Errorf("%s has no %q", unit, want)
			}
		}
		if own := strings.HasPrefix(name, "vra-filter"); own == strings.Contains(text, "\nWatchdogSec=") { // its watchdog is its own
			t.Errorf("%s: who watches?", unit)
		}
		if name != "vra-sidecar" && strings.Contains(text, "\nProcSubset=pid") {
			t.Errorf("%s hides the boot's id, by which marks are known to be of this boot", unit)
		}
	}
}

// TestVerifyUnit: what runs the user's command on a schedule is shut in as far as machines let it be, and its context is the instance's.
func TestVerifyUnit(t *testing.T) {
	needs(t, "systemd-analyze")
	dir := t.TempDir()
	unit := filepath.Join(dir, strings.Replace(verifyUnit, "@", "@shop", 1))
	for _, f := range gathered(t, 0, "/usr") {
		if strings.HasSuffix(f.path, "/"+verifyUnit) {
			write(t, unit, f.data)
		}
	}
	t.Log(strings.TrimSpace(lastLine(command(t, "systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=35", unit))))
	text := read(t, unit)
	for _, want := range []string{"\nEnvironment=HOLDFAST_CONTEXT=/etc/holdfast/context-%i.yaml\n", "\nExecStart=/usr/bin/holdfast verify --scheduled --metrics ", "\nRestart=always\n", "\nKillMode=mixed\n", "\nUser=holdfast\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("%s has no %q", unit, want)
		}
	}
	write(t, unit, []byte(regexp.MustCompile(`(?m)^Documentation=.*\n`).ReplaceAllString(strings.ReplaceAll(text, "/usr/bin/holdfast", "/bin/true"), "")))
	if out := command(t, "systemd-analyze", "verify", "--man=no", unit); strings.Contains(out, filepath.Base(unit)+":") {
		t.Errorf("systemd says %s", out)
	}
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

// TestPagesTellOfEveryFlag: each flag that --help tells of stands in the manual, and no other.
func TestPagesTellOfEveryFlag(t *testing.T) {
	for _, name := range daemons {
		out, _ := exec.Command(filepath.Join(commands(t, 0), name), "--help").CombinedOutput() // it ends with 0 or not
		var has, told []string
		for _, m := range regexp.MustCompile(`(?m)^  -([a-z-]+)`).FindAllStringSubmatch(string(out), -1) {
			has = append(has, m[1])
		}
		page := strings.ReplaceAll(read(t, filepath.Join(root, "cmd", name, name+".8")), `\-`, "-")
		for _, m := range regexp.MustCompile(`(?m)^\\fB--([a-z-]+)`).FindAllStringSubmatch(page, -1) {
			told = append(told, m[1])
		}
		slices.Sort(has)
		slices.Sort(told)
		if len(has) == 0 || !slices.Equal(has, told) {
			t.Errorf("%s has %q, and the manual tells of %q", name, has, told)
		}
	}
}

// TestExamples: the files that come with the package are good but for what a site has itself.
func TestExamples(t *testing.T) {
	example := func(name string) []byte { return []byte(read(t, filepath.Join(root, "cmd", name, name+".yaml"))) }
	if _, err := config.ParseVRA(example("vra")); err != nil {
		t.Error(err)
	}
	if _, err := config.ParseVRA(regexp.MustCompile(`(?m)^#(  |[a-z])`).ReplaceAll(example("vra"), []byte("$1"))); err != nil {
		t.Errorf("with what is commented out: %v", err)
	}
	if _, err := config.ParseFilter(example("vra-filter")); err != nil {
		t.Error(err)
	}
	if _, err := config.ParseSidecar(example("vra-sidecar")); err != nil {
		t.Error(err)
	}
}

// TestScripts: what dpkg runs reads as the shell's language, also where a machine that systemd runs is needed to get there.
func TestScripts(t *testing.T) {
	for _, name := range []string{"postinst", "prerm", "postrm"} {
		command(t, "sh", "-n", "debian/"+name)
	}
}

// TestScriptsDecide: with a service manager that answers as one would, a filter that is not at rest keeps the package, and a daemon
// that does not come up again does not break an upgrade.
func TestScriptsDecide(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "systemctl"), []byte(`#!/bin/sh
echo "$*" >>"$ASKED"
case "$*" in
show*) printf '%s\n' $STATES ;;
*try-restart*) exit 1 ;;
is-active*) exit 3 ;;
esac
`))
	write(t, filepath.Join(dir, "systemd-sysusers"), []byte("#!/bin/sh\n"))
	write(t, filepath.Join(dir, "chown"), []byte("#!/bin/sh\n"))
	write(t, filepath.Join(dir, "chmod"), []byte("#!/bin/sh\n"))
	for _, name := range []string{"systemctl", "systemd-sysusers", "chown", "chmod"} {
		if err := os.Chmod(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	run := func(script, states string, args ...string) (asked string, err error) {
		name := filepath.Join(dir, script)
		write(t, name, []byte(strings.ReplaceAll(read(t, "debian/"+script), "/run/systemd/system", dir)))
		write(t, filepath.Join(dir, "asked"), nil)
		cmd := exec.Command("sh", append([]string{name}, args...)...)
		cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "ASKED="+filepath.Join(dir, "asked"), "STATES="+states, "DPKG_ROOT=")
		err = cmd.Run()
		return read(t, filepath.Join(dir, "asked")), err
	}
	for states, goes := range map[string]bool{"": true, "inactive": true, "inactive failed": true, "active": false, "inactive deactivating": false, "activating": false, "reloading": false} {
		if asked, err := run("prerm", states, "remove"); (err == nil) != goes || goes != strings.Contains(asked, "disable --now") || !strings.Contains(asked, "vra-filter*.service") {
			t.Errorf("filters that are %q: %v, asked %s", states, err, asked)
		}
	}
	if asked, err := run("postinst", "", "configure", "1.0"); err != nil || strings.Count(asked, "--no-block try-restart") != 3 {
		t.Errorf("an upgrade: %v, asked %s", err, asked)
	}
}

// TestVersion: of two commits of one day the later is the newer package.
func TestVersion(t *testing.T) {
	needs(t, "make")
	if exec.Command("git", "-C", root, "log", "-1").Run() != nil {
		t.Skip("this is no clone")
	}
	if out := command(t, "make", "-n", "-C", root, "deb"); !regexp.MustCompile(`-version '0~[0-9]{14}\+[0-9a-f]{12}'`).MatchString(out) {
		t.Errorf("make deb runs %s", out)
	}
}

func TestArguments(t *testing.T) {
	none := func(string) string { return "" }
	for _, args := range [][]string{{}, {"fly"}, {"-bin", "none", "install"}, {"-nonsense"}} {
		if run(args, none) == nil {
			t.Errorf("%q was carried out", args)
		}
	}
	if err := run([]string{"deb"}, func(string) string { return "yesterday" }); err == nil || !strings.Contains(err.Error(), "SOURCE_DATE_EPOCH") {
		t.Error(err)
	}
}

func write(t *testing.T, name string, p []byte) {
	t.Helper()
	if err := os.WriteFile(name, p, 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	p, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(p)
}
