// What the guests share. Mailbox: 0x8030_0000, 64 bytes for each CPU; x18 is this CPU's.
//   +0  count    +8  the counter as last read    +16 something is wrong: what
//   +24 a bit for each interrupt that was taken  +32 progress
// The host lets guests go on by writing to 0x8031_0000.

.macro mailbox cpu
    movz    x18, #0x8030, lsl #16
    add     x18, x18, \cpu, lsl #6
.endm

.macro wait_for_go
    movz    x9, #0x8031, lsl #16
9:  ldr     x10, [x9]
    cbz     x10, 9b
.endm

// x17: 0 with a GICv2. x16: distributor. x15: CPU interface or SGI frame.
.macro gic_init
    mrs     x17, id_aa64pfr0_el1
    ubfx    x17, x17, #24, #4
    movz    x16, #0x0800, lsl #16
    movz    x15, #0x0801, lsl #16
    cbz     x17, 8f
    movz    x15, #0x080b, lsl #16
    mov     w9, #0x12           // GICD_CTLR: ARE, group 1
    str     w9, [x16]
    movz    w9, #0x0800, lsl #16
    orr     w9, w9, #0xffff     // GICR_ISENABLER0: SGIs and INTID 27
    str     w9, [x15, #0x100]
    mov     x9, #0xff
    msr     s3_0_c4_c6_0, x9    // ICC_PMR_EL1
    mov     x9, #1
    msr     s3_0_c12_c12_7, x9  // ICC_IGRPEN1_EL1
    isb
    b       9f
8:  mov     w9, #1
    str     w9, [x16]           // GICD_CTLR
    movz    w9, #0x0800, lsl #16
    orr     w9, w9, #0xffff
    str     w9, [x16, #0x100]   // GICD_ISENABLER0
    mov     w9, #0xff
    str     w9, [x15, #4]       // GICC_PMR
    mov     w9, #1
    str     w9, [x15]           // GICC_CTLR
9:
.endm

// Sets the priority of an SGI or PPI below 32.
.macro gic_priority intid, priority
    mov     w9, #\priority
    cbz     x17, 8f
    add     x10, x15, #0x400
    b       9f
8:  add     x10, x16, #0x400
9:  strb    w9, [x10, #\intid]
.endm

// Sends SGI \intid to this CPU, number 0.
.macro send_sgi intid
    cbz     x17, 8f
    movz    x9, #(\intid << 8), lsl #16
    orr     x9, x9, #1
    msr     s3_0_c12_c11_5, x9  // ICC_SGI1R_EL1
    isb
    b       9f
8:  mov     w9, #\intid
    orr     w9, w9, #0x02000000
    str     w9, [x16, #0xf00]   // GICD_SGIR: to itself
9:
.endm

.macro acknowledge reg
    cbz     x17, 8f
    mrs     x\reg, s3_0_c12_c12_0 // ICC_IAR1_EL1
    b       9f
8:  ldr     w\reg, [x15, #0xc]  // GICC_IAR
9:
.endm

.macro complete reg
    cbz     x17, 8f
    msr     s3_0_c12_c12_1, x\reg // ICC_EOIR1_EL1
    b       9f
8:  str     w\reg, [x15, #0x10] // GICC_EOIR
9:
.endm

// An exception table, to be placed at 2 KiB, in which only IRQs at EL1 are expected.
.macro vectors irq
    .rept   5
    b       .
    .balign 128
    .endr
    b       \irq
    .balign 128
.endm
