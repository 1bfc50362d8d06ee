package record

import "errors"

// Piece is one write, or a part of one, on its way into a batch.
type Piece struct {
	Volume   VolumeID
	Off, Len int64 // bytes in the volume; Len is at least 1
	Ticket   Ticket
	Data     []byte // Len bytes, lent to the batch until it is reset; nil stands for zeros
}

// Limits say how much a batch takes. Zero means as much as the format allows.
type Limits struct {
	Raw     int // bytes of data; a slow link wants less, see design section 12
	Extents int
}

// Batch gathers pieces until they are sealed into one record. It holds slices of
// the pieces' data, never copies. Not safe for concurrent use.
type Batch struct{}

// NewBatch returns an empty batch.
func NewBatch(l Limits) *Batch { return &Batch{} }

// Add takes a piece, whole, or refuses it and stays as it was: then seal first. An
// empty batch takes every piece of up to 64 KiB of data, and zeros of any length.
// Tickets must not fall; a piece that follows the last one at once, of the same
// ticket, becomes one extent with it as far as lines and blocks allow. Data that is
// all zero becomes a zero extent.
func (b *Batch) Add(p Piece) bool { return false }

// Raw is the data held, in bytes before compression.
func (b *Batch) Raw() int { return 0 }

// Extents is how many extents the record would have.
func (b *Batch) Extents() int { return 0 }

// Empty says whether there is nothing to seal.
func (b *Batch) Empty() bool { return true }

// First is the ticket of the first piece; 0 when empty.
func (b *Batch) First() Ticket { return 0 }

// Last is the ticket of the last piece; 0 when empty.
func (b *Batch) Last() Ticket { return 0 }

// Reset empties the batch for use anew and lets go of all data.
func (b *Batch) Reset() {}

// Bound is the size, in bytes, that the sealed record cannot exceed.
func (b *Batch) Bound() int { return 0 }

// Seal appends the record to dst and returns it; with Bound() free bytes in dst it
// does not allocate. The batch keeps its pieces until Reset. It panics on an empty batch
// or a zero in id or t.
func (b *Batch) Seal(dst []byte, id Identity, t Time, c *Compressor) []byte { return dst }

// Compressor decides each block's codec and compresses. One per goroutine: it
// holds the encoder's tables (about 200 KiB).
type Compressor struct {
	// StoreOnly makes every block raw, for links faster than the encoder.
	StoreOnly bool
}

// NewCompressor returns a compressor that uses LZ4 where it pays.
func NewCompressor() *Compressor { return &Compressor{} }

var errUnready = errors.New("not yet")

func decodeLZ4(dst, src []byte) bool { return false }
