// Package record defines the one format in which guest writes travel: a batch
// sealed at the source, then sent, journaled and replayed as the same bytes.
// FORMAT.md beside this file gives every byte; the golden files in testdata must
// open for ever.
//
// A record is a fixed header, a block table, an extent table, a body (control
// records only) and the stored blocks:
//
//	0        128           +16 each      +24 each     +body        +stored
//	| header | block table | extent table | body       | block 0 | block 1 | ...
//
// What every reader may rely on, once Parse has returned without error:
//   - The header's checksum was verified before any field was used, and with it the
//     checksum of tables and body. No length was believed before its limit.
//   - Extents stand in ticket order; replaying them in order gives the image that
//     the writes gave. Two writes to one place both stand.
//   - A data extent lies inside one 32 KiB line of its volume and inside one block;
//     the data extents fill the blocks in order, without gap or overlap.
//   - The same batch, identity and time seal to the same bytes with the same codec.
//
// Block checksums are apart (Record.VerifyPayload, Record.OpenBlock, OpenStored):
// each covers the record's identity and the block's number, so that a block out of
// its place does not verify. The checksum of the header covers those of all blocks:
// two records with one identity and one Header.Checksum are the same record.
//
// Records from a peer are hostile until parsed: no input panics, allocates above
// the limits below or takes more than linear time, and LZ4 data is decoded by a
// bounds-checked decoder that never shows a byte it has not written.
//
// Nothing here is safe for concurrent use on one value, except reading a Record.
// Costs: 128 bytes a record, 24 an extent and 16 a block, so 0.7 % of 4 KiB writes;
// sealing, parsing and opening blocks allocate nothing in steady state.
package record

// Limits of the format, in bytes and counts. A record beyond any of them does not parse.
const (
	// LineBytes is the size of the lines that no data extent crosses, and the
	// largest block before compression.
	LineBytes = 32 << 10
	// MaxRawBytes bounds the data of one record before compression.
	MaxRawBytes = 4 << 20
	MaxBlocks   = 512
	MaxExtents  = 16384
	// MaxBody bounds the body of a control record.
	MaxBody = 64 << 10
	// MaxRecordBytes is the size of the largest record.
	MaxRecordBytes = HeaderBytes + MaxBlocks*blockBytes + MaxExtents*extentBytes + MaxBody + MaxRawBytes
	// VolumeLimit is where every extent and volume ends, in bytes: offsets have 56 bits.
	VolumeLimit = 1 << 56
	// MaxVolumes bounds the volumes named in one control record.
	MaxVolumes = 4096
	// MaxTag bounds a checkpoint's tag and a resync's reason, in bytes of UTF-8.
	MaxTag = 256
)
