//! Guests of a page of instructions each, assembled with the tests. What they do is told at the
//! top of each file.

use std::arch::global_asm;

macro_rules! guests {
    ($($name:ident: $file:literal,)*) => {
        global_asm!(
            ".pushsection .rodata",
            ".arch armv8.2-a+sve",
            include_str!("guests/common.s"),
            $(
                // Behind the header of 64 bytes that a kernel image has.
                ".balign 2048",
                ".skip 64",
                concat!("rotifer_test_", stringify!($name), ":"),
                include_str!(concat!("guests/", $file)),
                ".balign 8",
                concat!("rotifer_test_", stringify!($name), "_end:"),
            )*
            ".popsection",
        );

        $(
            pub(super) fn $name() -> Vec<u32> {
                let (start, end): (*const u8, *const u8);
                // SAFETY: takes two addresses and touches nothing.
                unsafe {
                    std::arch::asm!(
                        concat!("adrp {0}, rotifer_test_", stringify!($name)),
                        concat!("add {0}, {0}, :lo12:rotifer_test_", stringify!($name)),
                        concat!("adrp {1}, rotifer_test_", stringify!($name), "_end"),
                        concat!("add {1}, {1}, :lo12:rotifer_test_", stringify!($name), "_end"),
                        out(reg) start,
                        out(reg) end,
                        options(pure, nomem, nostack, preserves_flags),
                    );
                }
                // SAFETY: the bytes between the two labels are constants of this program.
                let bytes = unsafe {
                    std::slice::from_raw_parts(start, end as usize - start as usize)
                };
                bytes
                    .chunks_exact(4)
                    .map(|word| u32::from_le_bytes(word.try_into().unwrap()))
                    .collect()
            }
        )*
    };
}

guests! {
    cpus: "cpus.s",
    interrupts: "interrupts.s",
    ticks: "ticks.s",
    late: "late.s",
}
