package segment

import (
	"hash/crc32"
	"testing"

	"github.com/holdfast-dr/holdfast/wire/record"
)

// The chain is what FORMAT.md says: a running CRC32C over the headers' checksums.
func TestChain(t *testing.T) {
	chain := chainStart(testGroup)
	if want := crc32.Checksum([]byte{8, 7, 6, 5, 4, 3, 2, 1}, castagnoli); chain != want {
		t.Fatalf("the chain begins with %08x, want %08x", chain, want)
	}
	for _, sum := range []uint32{0, 1, 0xdeadbeef, 0xffffffff} {
		want := crc32.Update(chain, castagnoli, le.AppendUint32(nil, sum))
		if chain = chainNext(chain, record.Header{Checksum: sum}); chain != want {
			t.Fatalf("after %08x the chain is %08x, want %08x", sum, chain, want)
		}
	}
}

func TestCommitEnd(t *testing.T) {
	f := func(pos, want Pos) {
		t.Helper()
		if got := commitEnd(pos); got != want {
			t.Errorf("commitEnd(%s) = %s, want %s", pos, got, want)
		}
	}
	f(4097, 8192)
	f(8192-64, 8192)
	f(8192-63, 12288)
	f(8192, 12288)
}
