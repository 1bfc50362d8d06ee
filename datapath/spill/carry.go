package spill

// What a window does so that the next process can go on with it. The file says, in this order: which record stands in
// a slab; that the window holds it; only then are the slots freed that it was made of, and only then is it lent. And: that
// the window begins behind what was acknowledged; only then are those slabs used for others. So what the standing
// tells of is there at every moment, and what it does not tell of was not sent, and its slots stand.

// KeepIn has the window say in the file how it stands, and takes up what an earlier process left there, nil for
// nothing; before anything is put. The records of c must be of the file's slabs.
func (w *Window) KeepIn(k *Kept, c *Carried) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.kept = k
	if c == nil {
		return
	}
	w.mu.standing, w.mu.alive = c.Standing, true
	w.mu.first, w.mu.sent = c.First, c.First-1
	for _, r := range c.Records {
		r.window, r.stored = w, r.Buffer.Held()
		w.mu.records = append(w.mu.records, r)
		w.mu.bytes += r.stored
		w.mu.raw += r.Raw
	}
	w.holdsLocked()
}

// Begins says that what is put from now on is of the incarnation that s names, and may be gone on with. It follows Reset.
func (w *Window) Begins(s Standing) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s.First, s.Next, s.At, s.Listed = w.mu.first, w.mu.first, At{}, 0
	w.mu.standing, w.mu.alive = s, true
	w.tellLocked()
}

// Listed says that the target has listed a checkpoint.
func (w *Window) Listed(number uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.mu.alive && number > w.mu.standing.Listed {
		w.mu.standing.Listed = number
		w.tellLocked()
	}
}

// Void says that nothing that stands here is to be gone on with by another process: slots may be freed from now on whose
// writes are put nowhere. Until Begins.
func (w *Window) Void() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.voidLocked()
}

func (w *Window) voidLocked() {
	if w.mu.alive && w.kept != nil {
		w.kept.stand(w.mu.standing, false)
	}
	w.mu.alive = false
}

// Leave ends the use of the window, and leaves all that it holds to the next process. Nothing is on loan.
func (w *Window) Leave() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mu.records, w.kept, w.mu.alive = nil, nil, false
}

// tellLocked writes how the window stands. First is what it will be where records are about to go.
func (w *Window) tellLocked() {
	if w.kept == nil || !w.mu.alive {
		return
	}
	w.mu.standing.First, w.mu.standing.Next = max(w.mu.standing.First, w.mu.first), w.nextLocked()
	w.kept.stand(w.mu.standing, true)
}

// sayLocked notes in the memory of r that it stands there.
func (w *Window) sayLocked(r *Record) {
	if b, ok := r.Buffer.(*Slab); ok && w.kept != nil && w.mu.alive {
		b.say(r, w.mu.standing.Incarnation)
	}
}
