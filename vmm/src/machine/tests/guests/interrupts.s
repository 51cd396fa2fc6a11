// Leaves interrupts of every kind pending, and one in progress, while none is taken; takes them
// once the host says so, but none below the priority of the one in progress before its end.
    mov     x19, #0
    mailbox x19
    adr     x9, 7f
    msr     vbar_el1, x9
    gic_init
    gic_priority 5, 0x40
    gic_priority 3, 0xa0
    gic_priority 27, 0xa0
    // INTID 33, that of the generation identifier, and 50: edges, low priority, enabled.
    mov     w9, #0x8
    str     w9, [x16, #0xc08]       // ICFGR2: INTID 33
    mov     w9, #0x20
    str     w9, [x16, #0xc0c]       // ICFGR3: INTID 50
    mov     w9, #0xa0
    add     x10, x16, #0x400
    strb    w9, [x10, #33]
    strb    w9, [x10, #50]
    mov     w9, #1
    add     x10, x16, #0x800
    strb    w9, [x10, #33]          // ITARGETSR, of a GICv2
    strb    w9, [x10, #50]
    mov     w9, #0x2
    movk    w9, #0x4, lsl #16
    str     w9, [x16, #0x104]       // ISENABLER1
    // In progress:
    send_sgi 5
1:  acknowledge 20
    and     x9, x20, #0x3ff
    cmp     x9, #5
    b.ne    1b
    // Pending:
    send_sgi 3
    movz    w9, #0x4, lsl #16
    str     w9, [x16, #0x204]       // ISPENDR1: INTID 50
    mrs     x9, cntvct_el0
    msr     cntv_cval_el0, x9
    mov     x9, #1
    msr     cntv_ctl_el0, x9
    isb
    mov     x9, #1
    str     x9, [x18, #32]
    wait_for_go
    msr     daifclr, #2
    mov     x9, #0x4000
2:  subs    x9, x9, #1
    b.ne    2b
    ldr     x9, [x18, #24]
    str     x9, [x18, #16]          // should be none
    complete 20
3:  ldr     x9, [x18]
    add     x9, x9, #1
    str     x9, [x18]
    b       3b

6:  acknowledge 11
    and     x12, x11, #0x3ff
    cmp     x12, #27
    b.ne    5f
    msr     cntv_ctl_el0, xzr
    isb
5:  mov     x13, #1
    lsl     x13, x13, x12
    ldr     x14, [x18, #24]
    orr     x14, x14, x13
    str     x14, [x18, #24]
    complete 11
    eret
    .balign 2048
7:  vectors 6b
