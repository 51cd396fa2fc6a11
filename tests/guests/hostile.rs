//! A bare-metal guest that is out to break the VMM: it writes garbage to every register of every
//! virtio device, sets up rings of garbage, and kicks. It prints a line now and then, so that the
//! test sees it live, and ends with "hostile: survived" and WFI (or power-off).
//!
//! Boot arguments: `seed=N rounds=N end=off|wfi`. Same seed, same abuse.

#![no_std]
#![no_main]
// Nor a C library: loops are not to become calls of strlen.
#![no_builtins]

use core::arch::{asm, global_asm};
use core::fmt::{self, Write};
use core::ptr;

// The 64-byte header of Documentation/arch/arm64/booting.rst, then: a stack, zeroed .bss, vectors.
global_asm!(
    r#"
.section .head, "ax"
.global _start
_start:
    b 1f
    .long 0
    .quad 0
    .quad _image_size
    .quad 0b1010
    .quad 0, 0, 0
    .ascii "ARM\x64"
    .long 0
1:  adrp x1, _stack_top
    add x1, x1, :lo12:_stack_top
    mov sp, x1
    // Let compiled code use the vector registers.
    mov x1, #(3 << 20)
    msr cpacr_el1, x1
    // An identity map, so that RAM is normal memory: without it, compiled code that accesses
    // memory unaligned would fault. MAIR: 0 = Device-nGnRnE, 1 = Normal write-back. TCR: 39 bits
    // of address, 4 KiB granule, walks cached and inner shareable, IPS 40 bits.
    mov x1, #0xff00
    msr mair_el1, x1
    ldr x1, =0x200803519
    msr tcr_el1, x1
    adrp x1, {page_table}
    add x1, x1, :lo12:{page_table}
    msr ttbr0_el1, x1
    isb
    tlbi vmalle1
    dsb ish
    mrs x1, sctlr_el1
    mov x2, #0x1005
    orr x1, x1, x2
    msr sctlr_el1, x1
    isb
    adrp x1, vectors
    add x1, x1, :lo12:vectors
    msr vbar_el1, x1
    isb
    bl main
2:  wfi
    b 2b
.balign 2048
vectors:
.rept 16
    b exception
    .balign 128
.endr
exception:
    mrs x0, esr_el1
    mrs x1, elr_el1
    mrs x2, far_el1
    bl report_exception
"#,
    page_table = sym PAGE_TABLE,
);

/// Level 1 of the translation table: blocks of 1 GiB, devices below RAM.
#[repr(C, align(4096))]
struct PageTable([u64; 512]);
static PAGE_TABLE: PageTable = PageTable(identity_map());

const fn identity_map() -> [u64; 512] {
    let mut table = [0; 512];
    let mut gib = 0;
    while gib < 8 {
        // Valid block, access flag, inner shareable; attribute index 1 (normal) from RAM on.
        let attribute = if gib < 2 { 0 } else { 1 };
        table[gib] = (gib as u64) << 30 | 1 << 10 | 3 << 8 | attribute << 2 | 1;
        gib += 1;
    }
    table
}

/// Most devices that are looked at.
const MAX_DEVICES: usize = 16;
/// Size of a device's register window.
const WINDOW_BYTES: u64 = 0x200;
const QUEUE_MEMORY_BYTES: usize = 0x8000;

/// What the guest learns from its device tree.
struct Board {
    serial: u64,
    virtio: [u64; MAX_DEVICES],
    virtio_count: usize,
    seed: u64,
    rounds: u64,
    power_off: bool,
}

/// Where rings and buffers lie.
#[repr(C, align(4096))]
struct QueueMemory([u8; QUEUE_MEMORY_BYTES]);
static mut QUEUE_MEMORY: QueueMemory = QueueMemory([0; QUEUE_MEMORY_BYTES]);
static mut SERIAL: u64 = 0;

#[unsafe(no_mangle)]
extern "C" fn main(fdt: *const u8) -> ! {
    // SAFETY: the boot protocol puts the device tree's address into x0.
    let board = unsafe { read_board(fdt) };
    // SAFETY: one CPU, no interrupts: nobody else looks at it.
    unsafe { SERIAL = board.serial };
    let mut random = Random(board.seed | 1);
    let devices = &board.virtio[..board.virtio_count];
    let _ = writeln!(Console, "hostile: {} devices, seed {}", devices.len(), board.seed);
    for round in 0..board.rounds {
        let base = devices[random.below(devices.len() as u64) as usize];
        match random.below(4) {
            0 => write_garbage(base, &mut random),
            1 => read_garbage(base, &mut random),
            _ => drive_badly(base, &mut random),
        }
        if round % 256 == 255 {
            let _ = writeln!(Console, "hostile: round {}", round + 1);
        }
    }
    for &base in devices {
        write32(base + 0x070, 0);
        if read32(base) != 0x7472_6976 || read32(base + 0x070) != 0 {
            let _ = writeln!(Console, "hostile: the device at {base:#x} did not reset");
            power_off();
        }
    }
    let _ = writeln!(Console, "hostile: survived");
    if board.power_off {
        power_off();
    }
    loop {
        // SAFETY: waits for an interrupt, and none is enabled.
        unsafe { asm!("wfi") };
    }
}

/// Any value anywhere in the window, in any width.
fn write_garbage(base: u64, random: &mut Random) {
    for _ in 0..32 {
        let (offset, value) = (random.below(WINDOW_BYTES) & !7, random.value());
        let at = base + offset;
        // SAFETY: device memory; the worst that can happen is what is being tested.
        unsafe {
            match random.below(4) {
                0 => ptr::write_volatile(at as *mut u8, value as u8),
                1 => ptr::write_volatile(at as *mut u16, value as u16),
                2 => ptr::write_volatile((at + 4 * random.below(2)) as *mut u32, value as u32),
                _ => ptr::write_volatile(at as *mut u64, value),
            }
        }
    }
}

fn read_garbage(base: u64, random: &mut Random) {
    for _ in 0..32 {
        let at = base + (random.below(WINDOW_BYTES) & !7);
        // SAFETY: device memory.
        unsafe {
            match random.below(4) {
                0 => drop(ptr::read_volatile(at as *const u8)),
                1 => drop(ptr::read_volatile(at as *const u16)),
                2 => drop(ptr::read_volatile(at as *const u32)),
                _ => drop(ptr::read_volatile(at as *const u64)),
            }
        }
    }
}

/// A driver that gets as far as kicking, with rings that are partly in memory and partly not, and
/// descriptors that are anything.
fn drive_badly(base: u64, random: &mut Random) {
    write32(base + 0x070, 0);
    write32(base + 0x070, 1);
    write32(base + 0x070, 3);
    for select in [0, 1] {
        write32(base + 0x014, select);
        let offered = read32(base + 0x010);
        let mask = if random.below(2) == 0 { u32::MAX } else { random.value() as u32 };
        write32(base + 0x024, select);
        // VERSION_1 is bit 32.
        write32(base + 0x020, (offered & mask) | select);
    }
    write32(base + 0x070, 11);
    let memory = (&raw mut QUEUE_MEMORY).cast::<u8>() as u64;
    for queue in 0..4 {
        write32(base + 0x030, queue);
        let max = read32(base + 0x034);
        if max == 0 {
            break;
        }
        fill_rings(memory, random);
        let size = 1 << random.below(9);
        write32(base + 0x038, if random.below(8) == 0 { random.value() as u32 } else { size });
        for (register, offset) in [(0x080, 0), (0x090, 0x2000), (0x0a0, 0x3000)] {
            let address = if random.below(16) == 0 { random.address() } else { memory + offset };
            write32(base + register, address as u32);
            write32(base + register + 4, (address >> 32) as u32);
        }
        write32(base + 0x044, 1);
    }
    write32(base + 0x070, 15);
    for _ in 0..8 {
        write32(base + 0x050, random.below(4) as u32);
        // The rings change under the device's eyes.
        fill_some(memory, random);
        write32(base + 0x050, random.below(4) as u32);
        write32(base + 0x064, read32(base + 0x060));
    }
}

/// Descriptors that point to memory or nowhere, chains that end, loop or leave the table.
fn fill_rings(memory: u64, random: &mut Random) {
    for index in 0..256_u64 {
        let descriptor = memory + 16 * index;
        let length = match random.below(4) {
            0 => random.value() as u32,
            1 => 16,
            _ => random.below(4096) as u32,
        };
        let flags =
            if random.below(8) == 0 { random.value() as u16 } else { random.below(8) as u16 };
        let next = if random.below(4) == 0 { random.value() } else { index + 1 };
        store(descriptor, random.address());
        store(descriptor + 8, u64::from(length) | u64::from(flags) << 32 | (next & 0xffff) << 48);
    }
    for offset in (0x2000..0x3000).step_by(8) {
        store(memory + offset, random.value() & 0x00ff_00ff_00ff_00ff);
    }
    let available = random.below(300) << 16;
    store(memory + 0x2000, available);
}

fn fill_some(memory: u64, random: &mut Random) {
    for _ in 0..16 {
        store(memory + (random.below(QUEUE_MEMORY_BYTES as u64) & !7), random.value());
    }
    store(memory + 0x2000, random.below(0x1_0000) << 16);
}

/// xorshift64*: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn value(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        (self.value() >> 16) % bound
    }

    /// Mostly somewhere in the rings' memory, sometimes anywhere.
    fn address(&mut self) -> u64 {
        match self.below(4) {
            0 => self.value(),
            1 => self.value() & 0xffff_ffff,
            _ => (&raw const QUEUE_MEMORY).cast::<u8>() as u64 + 0x4000 + self.below(0x3000),
        }
    }
}

fn read32(address: u64) -> u32 {
    // SAFETY: device memory, aligned.
    unsafe { ptr::read_volatile(address as *const u32) }
}

fn write32(address: u64, value: u32) {
    // SAFETY: device memory, aligned.
    unsafe { ptr::write_volatile(address as *mut u32, value) }
}

fn store(address: u64, value: u64) {
    // SAFETY: within QUEUE_MEMORY, aligned; volatile because the device reads it.
    unsafe { ptr::write_volatile(address as *mut u64, value) }
}

fn power_off() -> ! {
    // SAFETY: PSCI SYSTEM_OFF does not return.
    unsafe { asm!("hvc #0", in("x0") 0x8400_0008_u64, options(noreturn)) }
}

#[unsafe(no_mangle)]
extern "C" fn report_exception(syndrome: u64, pc: u64, address: u64) -> ! {
    let _ = writeln!(Console, "hostile: exception {syndrome:#x} at {pc:#x}, address {address:#x}");
    power_off()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let _ = writeln!(Console, "hostile: {info}");
    power_off()
}

/// The 16550's transmit register.
struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // SAFETY: set once, before the first line is printed.
            unsafe { ptr::write_volatile(SERIAL as *mut u8, byte) };
        }
        Ok(())
    }
}

/// Walks the structure block of the device tree (Devicetree Specification 0.4, section 5.4) for
/// node names and boot arguments. This guest trusts its VMM.
unsafe fn read_board(fdt: *const u8) -> Board {
    let mut board = Board {
        serial: 0,
        virtio: [0; MAX_DEVICES],
        virtio_count: 0,
        seed: 1,
        rounds: 1,
        power_off: true,
    };
    // SAFETY: a device tree lies at `fdt`; its header holds offsets within it.
    let word = |offset: usize| unsafe { u32::from_be(ptr::read_unaligned(fdt.add(offset).cast())) };
    let (structure, strings) = (word(8) as usize, word(12) as usize);
    let mut at = structure;
    loop {
        let token = word(at);
        at += 4;
        match token {
            1 => {
                // SAFETY: a node's name follows, ended by NUL.
                let name = unsafe { text(fdt.add(at)) };
                if let Some(base) = address_in(name, b"virtio_mmio@") {
                    if board.virtio_count < MAX_DEVICES {
                        board.virtio[board.virtio_count] = base;
                        board.virtio_count += 1;
                    }
                } else if let Some(base) =
                    address_in(name, b"serial@").or(address_in(name, b"uart@"))
                {
                    board.serial = base;
                }
                at += (name.len() + 1).next_multiple_of(4);
            }
            3 => {
                let (length, name) = (word(at) as usize, word(at + 4) as usize);
                // SAFETY: names lie in the strings block, values in the structure block.
                let (name, value) = unsafe {
                    let value = core::slice::from_raw_parts(fdt.add(at + 8), length);
                    (text(fdt.add(strings + name)), value)
                };
                if name == b"bootargs" {
                    board.seed = number(value, b"seed=").unwrap_or(board.seed);
                    board.rounds = number(value, b"rounds=").unwrap_or(board.rounds);
                    board.power_off = number(value, b"wfi=").is_none();
                }
                at += 8 + length.next_multiple_of(4);
            }
            9 => return board,
            _ => {}
        }
    }
}

/// Bytes up to a NUL.
unsafe fn text<'a>(start: *const u8) -> &'a [u8] {
    let mut len = 0;
    // SAFETY: the caller says that a NUL follows.
    unsafe {
        while *start.add(len) != 0 {
            len += 1;
        }
        core::slice::from_raw_parts(start, len)
    }
}

/// The hexadecimal number after `prefix`.
fn address_in(name: &[u8], prefix: &[u8]) -> Option<u64> {
    name.strip_prefix(prefix)?.iter().try_fold(0, |value: u64, &digit| {
        Some(value << 4 | u64::from(char::from(digit).to_digit(16)?))
    })
}

/// The decimal number after `key` anywhere in `text`.
fn number(text: &[u8], key: &[u8]) -> Option<u64> {
    let start = text.windows(key.len()).position(|window| window == key)? + key.len();
    let digits = text[start..].iter().take_while(|byte| byte.is_ascii_digit());
    Some(
        digits.fold(0, |value: u64, &digit| {
            value.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'))
        }),
    )
}
