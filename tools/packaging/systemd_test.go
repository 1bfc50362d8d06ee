package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/pairing"
)

// What an administrator fills in.
var filledIn = map[string]string{
	"vra.yaml": `{site: west, id: vra-1, data_dir: /var/lib/holdfast, run_dir: /run/holdfast, socket: /run/holdfast/vra.sock,
  tls: {ca: /etc/holdfast/tls/ca.pem, cert: /etc/holdfast/tls/vra.pem, key: /etc/holdfast/tls/vra-key.pem, peer_ca: /etc/holdfast/tls/east.pem, peer_site: east},
  target: {store: /var/lib/holdfast/store, cache: 64MiB, index_memory: 64MiB}}
`,
	"vra-filter.yaml": `{run_dir: /run/holdfast, group: {name: shop, id: "00000000000000a1"}, pool: 64MiB, pool_socket: /run/holdfast/shop.pool,
  volumes: [{name: data, id: 1, path: /var/lib/holdfast/disks/data.raw, nbd: /run/holdfast/data.sock}]}
`,
	"vra-sidecar.yaml": `id: vra-1
vra_socket: /run/holdfast/vra.sock
socket: /run/holdfast/sidecar.sock
data_dir: /var/lib/holdfast/sidecar
tls: {ca: /etc/holdfast/tls/ca.pem, cert: /etc/holdfast/tls/sidecar.pem, key: /etc/holdfast/tls/sidecar-key.pem}
logs: [{name: vra, path: /var/log/holdfast/vra.log}, {name: vra-filter, path: /var/log/holdfast/vra-filter.log}, {name: vra-sidecar, path: /var/log/holdfast/vra-sidecar.log}]
`,
}

// namespaces makes a machine's own of what a command sees. It ends with its first process, and that one with unshare.
var namespaces = []string{"unshare", "-m", "-p", "-f", "-n", "-C", "-i", "-u", "--kill-child", "--propagation", "private", "bash"}

// needsNamespaces skips a test where the kernel, or what we run in, does not let such a machine be made: that alone is no mistake of ours.
func needsNamespaces(t *testing.T, dir string) {
	t.Helper()
	probe := filepath.Join(dir, "probe")
	if err := os.Mkdir(probe, 0o700); err != nil {
		t.Fatal(err)
	}
	const script = `set -e; cd "$0"; mount -t tmpfs tmpfs .; mkdir up work root groups
mount -t overlay overlay -o "lowerdir=/,upperdir=up,workdir=work" root; mount -t cgroup2 cgroup2 groups; mknod root/device c 1 3`
	if out, err := exec.Command(namespaces[0], append(slices.Clone(namespaces[1:]), "-c", script, probe)...).CombinedOutput(); err != nil {
		t.Skipf("no machine can be made of namespaces here: %v: %s", err, out)
	}
}

// TestUnderSystemd installs the package on a machine made of namespaces, whose first process is a systemd, and has the units run there as they are: started, killed,
// reloaded, hung, upgraded, stopped, purged.
func TestUnderSystemd(t *testing.T) {
	needs(t, "unshare")
	needs(t, "systemd-analyze")
	needs(t, "curl")
	if os.Getuid() != 0 {
		t.Skip("mounts are for root")
	}
	dir := t.TempDir()
	needsNamespaces(t, dir)
	p, err := deb(gathered(t, 0, "/usr"), control{"1.2-3", strings.TrimSpace(command(t, "dpkg", "--print-architecture"))}, time.Unix(1700000000, 0).UTC())
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "holdfast.deb"), p)
	tls := filepath.Join(dir, "etc", "tls")
	if err := os.MkdirAll(tls, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range filledIn {
		write(t, filepath.Join(dir, "etc", name), []byte(text))
	}
	ca, err := pairing.NewCA("west", time.Now())
	east, err2 := pairing.NewCA("east", time.Now())
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(tls, name) }
	err = errors.Join(ca.Save(at("ca.pem"), at("ca-key.pem")), os.WriteFile(at("east.pem"), east.CertPEM(), 0o600))
	for name, who := range map[string]pairing.Identity{"vra": {Role: api.RoleVRA, ID: "vra-1"}, "sidecar": {Role: api.RoleSidecar, ID: "vra-1"}, "admin": {Role: api.RoleAdmin, ID: "ann"}} {
		leaf, e := ca.IssueAt(who, pairing.Hosts{"127.0.0.1"}, time.Now(), time.Hour)
		if err = errors.Join(err, e); err == nil {
			err = leaf.Save(at(name+".pem"), at(name+"-key.pem"))
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "inside.sh"), []byte(read(t, "testdata/inside.sh")))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, namespaces[0], append(slices.Clone(namespaces[1:]), "testdata/machine.sh", dir)...).CombinedOutput()
	said, err2 := os.ReadFile(filepath.Join(dir, "said"))
	if err2 != nil {
		t.Fatalf("%v; %v; it said %s", err2, err, out)
	}
	journal, _ := os.ReadFile(filepath.Join(dir, "journal")) // what there is of it helps
	next := string(said)
	for _, want := range []string{
		"not started by the package: inactive inactive inactive \n", "start: \n", "run: active active active \n",
		"say: replicates  speaks for its vra  serves \n", `status: {"site":"west"`, `logs: {"logs":[{"name":"vra", "bytes":`,
		`vra-sidecar was killed: {"site":"west"`, "the filter did not end with vra-sidecar\n", `vra was killed: {"site":"west"`, "the filter did not end with vra\n",
		"reload: \n", "reloaded: active active active \n", "no process ended for it\n",
		"bad file: speaks for its vra; the configuration that was read last was refused: /etc/holdfast/vra-sidecar.yaml: line 7: colour: unknown key",
		`it hung: {"site":"west"`, "upgrade: ", "after it: active active active \n", "the filter went on\n", "stop: \n", "results: success  success  success \n", "purge: ",
		"cannot access '/etc/holdfast/vra.yaml'", "kept: disks format lock sidecar store \n",
	} {
		_, after, ok := strings.Cut(strings.ReplaceAll(next, `", "`, `","`), strings.ReplaceAll(want, `", "`, `","`))
		if !ok {
			t.Errorf("it does not say %q:\n%s\nthe journal: %s", want, said, journal)
			break
		}
		next = after
	}
	if strings.Contains(string(said), "does not come back") || strings.Contains(string(journal), "panic") {
		t.Errorf("%s\nthe journal: %s", said, journal)
	}
}
