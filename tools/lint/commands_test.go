package lint

import (
	"go/ast"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// packageOf is the Debian package of each program that a test, or what it stands on, runs; "" where every Debian has it, or it is ours
// or Go's. Makefile has the packages installed before all is checked: a test whose program is absent is skipped.
var packageOf = map[string]string{
	"bash": "", "cmp": "", "find": "", "go": "", "gofmt": "", "losetup": "", "make": "", "mount": "", "sh": "", "sleep": "", "stdbuf": "", "umount": "",
	"dpkg": "", "dpkg-deb": "",
	"busybox": "busybox-static", "curl": "curl", "debugfs": "e2fsprogs", "fio": "fio", "git": "git", "grpcurl": "", // by go install
	"ip": "iproute2", "mke2fs": "e2fsprogs", "mkfs.ext4": "e2fsprogs", "nbdcopy": "libnbd-bin", "nbdfuse": "libnbd-bin",
	"libvirtd": "libvirt-daemon", "unshare": "", "nbdinfo": "libnbd-bin", "nbdkit": "nbdkit", "promtool": "prometheus", "protoc": "protobuf-compiler", "qemu-img": "qemu-utils",
	"qemu-nbd": "qemu-utils", "qemu-storage-daemon": "qemu-system-x86", "qemu-system-x86_64": "qemu-system-x86", "systemd-analyze": "systemd",
}

// runners are the calls, of os/exec and of the tests of tools/packaging, whose argument of that number names a program.
var runners = map[string]int{"Command": 0, "CommandContext": 1, "LookPath": 0, "needs": 1, "command": 1}

// TestCheckInstallsWhatItRuns: no test is left out on a machine on which make check was run.
func TestCheckInstallsWhatItRuns(t *testing.T) {
	dir, _, files := tree(t)
	makefile, err := os.ReadFile(filepath.Join(dir, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(makefile), "\ncheck:\n\t@tools/setup/packages.sh ")
	line, _, _ := strings.Cut(rest, "\n")
	installed := append(strings.Fields(line), "")
	runs := 0
	for _, f := range files {
		if !f.test && !under(f.pkg, "bench/scenario", "bench/guest", "control/hypervisor/kvm/kvmtest", "tools/check", "tools/apidoc") {
			continue
		}
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			name := ""
			switch fun := call.Fun.(type) {
			case *ast.Ident:
				if f.pkg == "tools/packaging" {
					name = fun.Name
				}
			case *ast.SelectorExpr:
				if x, ok := fun.X.(*ast.Ident); ok && x.Name == "exec" {
					name = fun.Sel.Name
				}
			}
			at, ok := runners[name]
			if !ok || at >= len(call.Args) {
				return true
			}
			lit, ok := call.Args[at].(*ast.BasicLit)
			if !ok {
				return true
			}
			program := filepath.Base(strings.Trim(lit.Value, `"`))
			if strings.HasSuffix(program, ".sh") || strings.Contains(program, "=") { // ours; a variable beside a command
				return true
			}
			runs++
			switch p, known := packageOf[program]; {
			case !known:
				t.Errorf("%s runs %s: packageOf does not say of which package it is", f.path, program)
			case !slices.Contains(installed, p):
				t.Errorf("%s runs %s: make check does not install %s", f.path, program, p)
			}
			return true
		})
	}
	if runs < 20 || len(installed) < 10 {
		t.Errorf("%d programs found, and %d packages", runs, len(installed))
	}
}
