package buf

import "syscall"

// adviseHuge asks for huge pages. A system that has none goes on without.
func adviseHuge(b []byte) { _ = syscall.Madvise(b, syscall.MADV_HUGEPAGE) }
