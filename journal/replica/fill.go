package replica

// Fill puts data in place as Write does, past the page cache and many at once: a sync has no pages to write then. Each change
// has whole blocks of data, and none has a block of another's.
func (v *Volume) Fill(changes []Change) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.rows.reset()
	for _, c := range changes {
		if err := v.writable(c.Off, c.Len); err != nil {
			return err
		}
		if c.Off%BlockBytes != 0 || c.Len%BlockBytes != 0 || int64(len(c.Data)) != c.Len {
			panic("BUG: filling a replica with parts of blocks")
		}
		v.rows.add(c.Off/BlockBytes, c.Data)
	}
	return v.write(&v.rows, nil, 0)
}
