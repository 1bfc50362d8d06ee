package wire

import (
	"github.com/holdfast-dr/holdfast/wire/cutword"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// maxCutWord is the longest body of a CutWord.
const maxCutWord = 1 + 7*8 + 2 + record.MaxTag + 2 + cutword.MaxWhy

func appendCutWord(p []byte, w cutword.Word) []byte {
	p = append(p, byte(w.Kind))
	for _, v := range []uint64{uint64(w.Group), uint64(w.ID.Leader), w.ID.Term, w.ID.Number, w.Members, uint64(w.Wall), w.Floor} {
		p = putU64(p, v)
	}
	return putString(putString(p, w.Tag), w.Why)
}

func parseCutWord(p []byte) (w cutword.Word, err error) {
	d := decoder{p: p}
	if k := d.take(1); k != nil {
		w.Kind = cutword.Kind(k[0])
	}
	w.Group = record.GroupID(d.u64())
	w.ID = cutword.ID{Leader: record.StreamID(d.u64()), Term: d.u64(), Number: d.u64()}
	w.Members, w.Wall, w.Floor = d.u64(), int64(d.u64()), d.u64()
	w.Tag, w.Why = d.string(record.MaxTag), d.string(cutword.MaxWhy)
	if err := d.end("cut word"); err != nil {
		return cutword.Word{}, err
	}
	if err := w.Check(); err != nil {
		return cutword.Word{}, badFrame(BadBody, "%w", err)
	}
	return w, nil
}
