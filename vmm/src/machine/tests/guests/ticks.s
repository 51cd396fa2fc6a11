// Sleeps from one timer interrupt to the next; counts them.
    mov     x19, #0
    mailbox x19
    adr     x9, 7f
    msr     vbar_el1, x9
    gic_init
    mrs     x21, cntfrq_el0
    lsr     x21, x21, #5            // 31 ms
    mrs     x22, cntvct_el0
    add     x22, x22, x21
    msr     cntv_cval_el0, x22
    mov     x9, #1
    msr     cntv_ctl_el0, x9
    isb
    msr     daifclr, #2
1:  wfi
    b       1b

6:  acknowledge 11
    isb
    mrs     x9, cntvct_el0
    str     x9, [x18, #8]
    cmp     x9, x22
    b.hs    5f
    mov     x9, #1                  // before its time
    str     x9, [x18, #16]
5:  add     x22, x9, x21
    msr     cntv_cval_el0, x22
    isb
    ldr     x9, [x18]
    add     x9, x9, #1
    str     x9, [x18]
    complete 11
    eret
    .balign 2048
7:  vectors 6b
