//go:build amd64 && !planted

#include "textflag.h"

// func search(t *positions, dst, src *room, n int) (out, anchor int)
//
// It does what searchInGo does, to the byte, in the same order; the names there stand for
//
//	SI src   DI dst   R8 t   R9 at   BX from   R10 anchor   R11 out   R12 last   R13 n   DX end
//	R15 the factor of the hash   R14 step, or where the token stands
//
// What is read lies within the first n bytes of src: at is at most n - 17, from is less than at
// since t holds places that this call has seen, and matches are followed to n - 5. What is written
// lies within the first n bytes of dst: a sequence is written only when out, its literals
// and 40 bytes and more fit.
TEXT ·search(SB), NOSPLIT, $0-48
	MOVQ t+0(FP), R8
	MOVQ dst+8(FP), DI
	MOVQ src+16(FP), SI
	MOVQ n+24(FP), R13
	MOVQ $889523592379, R15
	LEAQ -17(R13), R12
	XORQ R10, R10
	XORQ R11, R11
	MOVQ $1, R9

look:
	MOVQ $64, R14

find:
	CMPQ R9, R12
	JGT  done
	MOVQ (SI)(R9*1), AX
	MOVQ AX, CX
	SHLQ $24, CX
	IMULQ R15, CX
	SHRQ $51, CX
	MOVWLZX (R8)(CX*2), BX
	MOVW R9, (R8)(CX*2)
	CMPL AX, (SI)(BX*1)
	JEQ  found
	MOVQ R14, CX
	SHRQ $6, CX
	ADDQ CX, R9
	INCQ R14
	JMP  find

found:
	// The match may begin earlier: up to 7 bytes, and not before anchor.
	MOVQ R9, CX
	SUBQ R10, CX
	CMPQ BX, CX
	CMOVQLT BX, CX
	TESTQ CX, CX
	JZ   match
	CMPQ BX, $8
	JLT  near
	MOVQ -8(SI)(R9*1), AX
	XORQ -8(SI)(BX*1), AX
	ORQ  $1, AX
	BSRQ AX, DX
	XORQ $63, DX
	SHRQ $3, DX
	CMPQ DX, CX
	CMOVQGT CX, DX
	SUBQ DX, R9
	SUBQ DX, BX
	JMP  match

near:
	MOVB -1(SI)(R9*1), AX
	CMPB AX, -1(SI)(BX*1)
	JNE  match
	DECQ R9
	DECQ BX
	DECQ CX
	JNZ  near

match:
	LEAQ 4(R9), DX
	MOVQ 4(SI)(R9*1), AX
	XORQ 4(SI)(BX*1), AX
	JZ   long
	BSFQ AX, CX
	SHRQ $3, CX
	ADDQ CX, DX

ended:
	MOVQ DX, AX
	SUBQ R10, AX
	SHRQ $7, AX
	ADDQ R11, AX
	ADDQ R9, AX
	SUBQ R10, AX
	ADDQ $40, AX
	CMPQ AX, R13
	JGT  fail
	MOVQ R9, CX
	SUBQ R10, CX
	LEAQ (DI)(R11*1), R14
	INCQ R11
	CMPQ CX, $15
	JGE  longRun
	MOVQ CX, AX
	SHLQ $4, AX
	MOVOU (SI)(R10*1), X0
	MOVOU X0, (DI)(R11*1)
	ADDQ CX, R11

offset:
	MOVQ R9, CX
	SUBQ BX, CX
	MOVW CX, (DI)(R11*1)
	ADDQ $2, R11
	MOVQ DX, CX
	SUBQ R9, CX
	SUBQ $4, CX
	CMPQ CX, $15
	JGE  longMatch
	ORQ  CX, AX
	MOVB AX, (R14)

next:
	MOVQ DX, R9
	MOVQ DX, R10
	CMPQ R9, R12
	JGT  done
	MOVQ -2(SI)(R9*1), AX
	MOVQ AX, CX
	SHLQ $24, CX
	IMULQ R15, CX
	SHRQ $51, CX
	LEAQ -2(R9), DX
	MOVW DX, (R8)(CX*2)
	SHRQ $16, AX // six bytes from at on, one more than the hash takes
	MOVQ AX, CX
	SHLQ $24, CX
	IMULQ R15, CX
	SHRQ $51, CX
	MOVWLZX (R8)(CX*2), BX
	MOVW R9, (R8)(CX*2)
	CMPL AX, (SI)(BX*1)
	JEQ  match
	INCQ R9
	JMP  look

longRun:
	MOVQ CX, AX
	SUBQ $15, AX

runLength:
	CMPQ AX, $255
	JLT  runLast
	MOVB $255, (DI)(R11*1)
	INCQ R11
	SUBQ $255, AX
	JMP  runLength

runLast:
	MOVB AX, (DI)(R11*1)
	INCQ R11
	ADDQ R11, CX // where the literals end

runCopy:
	MOVOU (SI)(R10*1), X0
	MOVOU X0, (DI)(R11*1)
	ADDQ $16, R10
	ADDQ $16, R11
	CMPQ R11, CX
	JLT  runCopy
	MOVQ CX, R11
	MOVQ $0xF0, AX
	JMP  offset

longMatch:
	ORQ  $15, AX
	MOVB AX, (R14)
	SUBQ $15, CX

matchLength:
	CMPQ CX, $255
	JLT  matchLast
	MOVB $255, (DI)(R11*1)
	INCQ R11
	SUBQ $255, CX
	JMP  matchLength

matchLast:
	MOVB CX, (DI)(R11*1)
	INCQ R11
	JMP  next

long:
	ADDQ $8, DX
	LEAQ 12(BX), R14
	LEAQ -13(R13), CX

forwards:
	CMPQ DX, CX
	JGT  tail
	MOVQ (SI)(DX*1), AX
	XORQ (SI)(R14*1), AX
	JNZ  differs
	ADDQ $8, DX
	ADDQ $8, R14
	JMP  forwards

differs:
	BSFQ AX, AX
	SHRQ $3, AX
	ADDQ AX, DX
	JMP  ended

tail:
	ADDQ $8, CX

tailByte:
	CMPQ DX, CX
	JGE  ended
	MOVB (SI)(DX*1), AX
	CMPB AX, (SI)(R14*1)
	JNE  ended
	INCQ DX
	INCQ R14
	JMP  tailByte

done:
	MOVQ R11, out+32(FP)
	MOVQ R10, anchor+40(FP)
	RET

fail:
	MOVQ $-1, out+32(FP)
	MOVQ $0, anchor+40(FP)
	RET
