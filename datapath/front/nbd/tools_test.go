package nbd

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/datapath/front/memdisk"
)

// tool runs a program of somebody else against our server; it must succeed.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Fatalf("%s is not there; install it: apt-get install qemu-utils fio nbdkit libnbd-bin", name)
	}
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = t.TempDir() // fio leaves files where it runs
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return string(out)
}

// scatter writes seeded stretches of random bytes, and leaves holes between them.
func scatter(t *testing.T, d *memdisk.Disk, seed uint64) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 200 {
		p := make([]byte, 1+rng.IntN(100_000))
		noise(p, rng)
		put(t, d, p, rng.Int64N(d.Size()-int64(len(p))))
	}
}

// noise fills p with what does not compress.
func noise(p []byte, rng *rand.Rand) {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], rng.Uint64())
	_, _ = rand.NewChaCha8(seed).Read(p) // never fails; at the price of a copy, also under the race detector
}

// put writes p past the server.
func put(t *testing.T, d *memdisk.Disk, p []byte, off int64) {
	t.Helper()
	w, err := d.BeginWrite(off, len(p))
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range w.Buffers() {
		p = p[copy(b, p):]
	}
	if err := w.Commit(false); err != nil {
		t.Fatal(err)
	}
}

// content is all that the disk holds.
func content(t *testing.T, d *memdisk.Disk) []byte {
	t.Helper()
	p := make([]byte, d.Size())
	if err := d.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

const toolDiskBytes = 48 << 20

func TestQemuImg(t *testing.T) { both(t, qemuImg) }

func qemuImg(t *testing.T) {
	e, d := memory("disk one/ä", toolDiskBytes) // a name that needs escapes
	scatter(t, d, 1)
	back, backDisk := memory("back", toolDiskBytes)
	scatter(t, backDisk, 2) // to be overwritten, zeros too
	s := serve(t, e, back)
	raw := filepath.Join(t.TempDir(), "raw")

	if out := tool(t, "qemu-img", "info", s.uri(e.Name)); !strings.Contains(out, fmt.Sprintf("(%d bytes)", toolDiskBytes)) {
		t.Errorf("info does not tell the size:\n%s", out)
	}
	tool(t, "qemu-img", "convert", "-O", "raw", s.uri(e.Name), raw)
	tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", raw, s.uri(e.Name))
	tool(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", raw, s.uri("back"))
	if !bytes.Equal(content(t, d), content(t, backDisk)) {
		t.Error("convert to the server: other bytes")
	}
	qcow := filepath.Join(t.TempDir(), "qcow2")
	tool(t, "qemu-img", "convert", "-O", "qcow2", s.uri(e.Name), qcow)
	tool(t, "qemu-img", "compare", qcow, s.uri("back"))
}

func TestQemuIO(t *testing.T) { both(t, qemuIO) }

func qemuIO(t *testing.T) {
	e, d := memory("m", toolDiskBytes)
	s := serve(t, e)
	tool(t, "qemu-io", "-f", "raw", s.uri("m"),
		"-c", "write -P 7 512 1536", "-c", "write -f -P 8 1M 64k", "-c", "write -z 1M 4k", "-c", "write -z -u 2M 1M",
		"-c", "discard 4M 1M", "-c", "flush", "-c", "read -P 7 512 1536", "-c", "read -P 0 1M 4k", "-c", "read -P 8 1028k 60k")
	want := make([]byte, toolDiskBytes)
	fill(want[512:2048], 7)
	fill(want[1<<20+4096:1<<20+65536], 8)
	if !bytes.Equal(content(t, d), want) {
		t.Error("qemu-io's writes are not there")
	}
}

func fill(p []byte, b byte) {
	for i := range p {
		p[i] = b
	}
}

func TestNbdcopy(t *testing.T) { both(t, nbdcopy) }

func nbdcopy(t *testing.T) {
	e, d := memory("from", toolDiskBytes)
	scatter(t, d, 3)
	to, toDisk := memory("to", toolDiskBytes)
	scatter(t, toDisk, 4)
	s := serve(t, e, to)
	file := filepath.Join(t.TempDir(), "file")
	tool(t, "nbdcopy", s.uri("from"), file)
	p, err := os.ReadFile(file)
	if err != nil || !bytes.Equal(p, content(t, d)) {
		t.Errorf("nbdcopy to a file: other bytes (%v)", err)
	}
	// Both ends are ours, by 4 connections each with 16 requests under way.
	tool(t, "nbdcopy", "--connections=4", "--requests=16", s.uri("from"), s.uri("to"))
	if !bytes.Equal(content(t, d), content(t, toDisk)) {
		t.Error("nbdcopy between two exports: other bytes")
	}
}

func TestNbdinfo(t *testing.T) { both(t, nbdinfo) }

func nbdinfo(t *testing.T) {
	e, d := memory("disk", toolDiskBytes)
	put(t, d, []byte{1}, 1<<20)
	other, _ := memory("other", 512)
	s := serve(t, e, other)
	f := func(out string, want ...string) {
		t.Helper()
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("no %q in:\n%s", w, out)
			}
		}
	}
	f(tool(t, "nbdinfo", "--json", s.uri("disk")),
		`"export-name": "disk"`, `"description": "50331648 bytes in memory"`, `"export-size": 50331648`, `"structured": true`,
		`"base:allocation"`, `"is_read_only": false`, `"can_cache": false`, `"can_df": true`, `"can_fast_zero": true`, `"can_flush": true`,
		`"can_fua": true`, `"can_multi_conn": true`, `"can_trim": true`, `"can_zero": true`,
		`"block_size_minimum": 1`, `"block_size_preferred": 4096`, `"block_size_maximum": 33554432`)
	f(tool(t, "nbdinfo", "--list", "--json", s.uri("")), `"export-name": "disk"`, `"export-name": "other"`, `"export-size": 512`)
	f(strings.Join(strings.Fields(tool(t, "nbdinfo", "--map", s.uri("disk"))), " "),
		"0 1048576 3 hole,zero 1048576 65536 0 data 1114112 49217536 3 hole,zero")
}

// fioArgs are what every run of fio has.
func fioArgs(uri string, more ...string) []string {
	return append([]string{"--name=t", "--ioengine=nbd", "--uri=" + uri, "--group_reporting"}, more...)
}

func TestFioVerify(t *testing.T) { both(t, fioVerify) }

func fioVerify(t *testing.T) {
	e, _ := memory("m", toolDiskBytes)
	s := serve(t, e)
	f := func(args ...string) {
		t.Helper()
		tool(t, "fio", fioArgs(s.uri("m"), append(args, "--verify=crc32c", "--verify_fatal=1", "--randseed=5")...)...)
	}
	f("--rw=randwrite", "--bs=4k", "--iodepth=32", "--size=12m")
	f("--rw=randwrite", "--bsrange=512-128k", "--bs_unaligned=0", "--blockalign=512", "--iodepth=16", "--size=12m")
	f("--rw=write", "--bs=1m", "--iodepth=4", "--size=24m")
	f("--rw=randwrite", "--bs=64k", "--iodepth=1", "--size=8m")
	f("--rw=randwrite", "--bs=4k", "--iodepth=16", "--size=4m", "--numjobs=4", "--offset_increment=8m")
}
