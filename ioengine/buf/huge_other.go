//go:build !linux

package buf

func adviseHuge([]byte) {}
