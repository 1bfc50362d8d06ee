//go:build !amd64 || planted

package record

func search(t *positions, dst, src *room, n int) (out, anchor int) { return searchInGo(t, dst, src, n) }
