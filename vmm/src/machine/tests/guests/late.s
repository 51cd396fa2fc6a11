// Turns CPU 1 on when the host says so, not before. CPU 1 tells what it was given.
    wait_for_go
    movz    x0, #3
    movk    x0, #0xc400, lsl #16    // PSCI CPU_ON
    mov     x1, #1
    adr     x2, 1f
    movz    x3, #0x5afe
    hvc     #0
    mov     x19, #0
    mailbox x19
    str     x0, [x18, #16]
    mov     x0, #1
    str     x0, [x18]
    b       .
1:  mov     x19, #1
    mailbox x19
    str     x0, [x18]
    b       .
