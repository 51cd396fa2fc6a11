// Every CPU counts, watches the counter, and checks that its vector registers keep their marks.
    mov     x21, #1
    adr     x20, 2f
1:  movz    x0, #3
    movk    x0, #0xc400, lsl #16    // PSCI CPU_ON, of CPUs that may not exist
    mov     x1, x21
    mov     x2, x20
    mov     x3, x21
    hvc     #0
    add     x21, x21, #1
    cmp     x21, #8
    b.lo    1b
    mov     x0, #0
2:  mov     x19, x0
    mailbox x19
    mov     x9, #(3 << 20 | 3 << 16)
    msr     cpacr_el1, x9           // FPEN, ZEN
    isb
    mov     x9, #(3 << 22)
    msr     fpcr, x9                // rounds towards zero
    add     x1, x19, #1, lsl #12
    mrs     x24, id_aa64pfr0_el1
    ubfx    x24, x24, #32, #4
    cbz     x24, 3f
    mov     x9, #15
    msr     zcr_el1, x9             // as long as they get
    isb
    ptrue   p0.d
    ptrue   p5.b, vl3
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30
    add     x2, x1, #\n
    dup     z\n\().d, x2
    .endr
    b       4f
3:  .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30
    add     x2, x1, #\n
    dup     v\n\().2d, x2
    .endr
4:  mov     x22, #0
    mrs     x23, cntvct_el0

5:  add     x22, x22, #1
    str     x22, [x18]
    isb
    mrs     x9, cntvct_el0
    mov     x26, #1                 // the counter went back
    cmp     x9, x23
    b.lo    7f
    mov     x23, x9
    str     x23, [x18, #8]
    mov     x26, #2                 // the rounding mode is lost
    mrs     x9, fpcr
    cmp     x9, #(3 << 22)
    b.ne    7f
    mov     x26, #3                 // a vector register is lost
    cbnz    x24, 6f
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30
    add     x2, x1, #\n
    umov    x3, v\n\().d[0]
    cmp     x2, x3
    b.ne    7f
    umov    x3, v\n\().d[1]
    cmp     x2, x3
    b.ne    7f
    .endr
    b       5b
6:  .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30
    add     x2, x1, #\n
    dup     z31.d, x2
    cmpne   p1.d, p0/z, z\n\().d, z31.d
    b.ne    7f
    .endr
    mov     x26, #4                 // a predicate is lost
    ptrue   p1.b
    cntp    x3, p1, p5.b
    cmp     x3, #3
    b.ne    7f
    b       5b
7:  str     x26, [x18, #16]
    b       .
