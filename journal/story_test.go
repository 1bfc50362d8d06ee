package journal

import (
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

func TestStory(t *testing.T) {
	disk := faultdisk.New(512)
	s := newSource(1)
	s.script()
	w, err := openTarget(disk)
	ok(t, err)
	ok(t, w.feed(s, 3))
	numbers, err := w.check(s)
	ok(t, err)
	if len(numbers) != len(s.images) {
		t.Fatalf("listed %v, want %d", numbers, len(s.images))
	}
	ok(t, w.store.Close())
	w, err = openTarget(disk)
	ok(t, err)
	numbers, err = w.check(s)
	ok(t, err)
	if len(numbers) != len(s.images) {
		t.Fatalf("after opening again: listed %v, want %d", numbers, len(s.images))
	}
	ok(t, w.store.Close())
	t.Log(numbers)
}
