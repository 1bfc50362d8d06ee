#include "textflag.h"

// MOVE moves the 64 bytes in z by the distance of the factors in Z16; tmp and z are to be added
// to those that lie there.
#define MOVE(z, tmp) \
	VPCLMULQDQ $0x00, Z16, z, tmp \
	VPCLMULQDQ $0x11, Z16, z, z

// func fold(state uint32, p *byte, n int, factors *[4]uint64) uint32
TEXT ·fold(SB), NOSPLIT, $64-36
	MOVL state+0(FP), AX
	MOVQ p+8(FP), SI
	MOVQ n+16(FP), CX
	MOVQ factors+24(FP), DX

	VMOVDQU64 0(SI), Z0
	VMOVDQU64 64(SI), Z1
	VMOVDQU64 128(SI), Z2
	VMOVDQU64 192(SI), Z3
	VMOVD AX, X4
	VPXORQ Z4, Z0, Z0
	ADDQ $256, SI
	SUBQ $256, CX
	JZ last

	VBROADCASTI32X4 0(DX), Z16

loop:
	MOVE(Z0, Z5)
	MOVE(Z1, Z6)
	MOVE(Z2, Z7)
	MOVE(Z3, Z8)
	VPTERNLOGQ $0x96, 0(SI), Z5, Z0
	VPTERNLOGQ $0x96, 64(SI), Z6, Z1
	VPTERNLOGQ $0x96, 128(SI), Z7, Z2
	VPTERNLOGQ $0x96, 192(SI), Z8, Z3
	ADDQ $256, SI
	SUBQ $256, CX
	JNZ loop

last:
	VBROADCASTI32X4 16(DX), Z16
	MOVE(Z0, Z5)
	VPTERNLOGQ $0x96, Z0, Z5, Z1
	MOVE(Z1, Z5)
	VPTERNLOGQ $0x96, Z1, Z5, Z2
	MOVE(Z2, Z5)
	VPTERNLOGQ $0x96, Z2, Z5, Z3
	VMOVDQU64 Z3, rest-64(SP)
	VZEROUPPER

	XORL AX, AX
	CRC32Q rest-64(SP), AX
	CRC32Q rest-56(SP), AX
	CRC32Q rest-48(SP), AX
	CRC32Q rest-40(SP), AX
	CRC32Q rest-32(SP), AX
	CRC32Q rest-24(SP), AX
	CRC32Q rest-16(SP), AX
	CRC32Q rest-8(SP), AX
	MOVL AX, ret+32(FP)
	RET
