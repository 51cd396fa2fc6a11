//! One vCPU: created, given its boot registers, run until something concerns the machine.

use std::fmt;

use kvm_bindings::{
    KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2, KVM_ARM_VCPU_PTRAUTH_ADDRESS,
    KVM_ARM_VCPU_PTRAUTH_GENERIC, KVM_ARM_VCPU_SVE, KVM_REG_ARM_CORE, KVM_REG_ARM64,
    KVM_REG_SIZE_U64, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN,
    kvm_regs, kvm_vcpu_init, user_pt_regs,
};
use kvm_ioctls::{Cap, VcpuExit, VcpuFd, VmFd};
use vm_memory::GuestAddress;

use super::kick::Kick;
use crate::arch::aarch64::layout;
use crate::bus::Bus;

/// Why a vCPU cannot be made or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// KVM refuses one step of setting it up.
    #[error("{attempt} vCPU {index}")]
    SetUp {
        /// Which step.
        attempt: &'static str,
        /// Which vCPU.
        index: u8,
        /// The cause.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// KVM_RUN fails.
    #[error("run vCPU {index} ({registers})")]
    Run {
        /// Which vCPU.
        index: u8,
        /// Where it was.
        registers: Registers,
        /// The cause.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// KVM_RUN ends for a reason that no machine of ours has.
    #[error("run vCPU {index}: KVM gives up with {reason} ({registers})")]
    GaveUp {
        /// Which vCPU.
        index: u8,
        /// What KVM says.
        reason: String,
        /// Where it was.
        registers: Registers,
    },
}

/// Why [`Vcpu::run`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Its [`Kick`] was used. Whatever the guest was doing with a device is complete.
    Kicked,
    /// PSCI SYSTEM_OFF: the guest has shut down.
    Shutdown,
    /// PSCI SYSTEM_RESET: the guest wants to start anew.
    Reset,
    /// KVM says that the guest has crashed.
    Crash,
}

/// A vCPU. Whoever holds the value may touch its registers: the thread that runs it hands it back
/// when it stops.
pub struct Vcpu {
    index: u8,
    fd: VcpuFd,
    /// How it was made.
    target: u32,
    features: u32,
}

impl Vcpu {
    /// Creates and initialises vCPU `index`; those after the first wait for PSCI CPU_ON.
    ///
    /// # Errors
    /// [`VcpuError::SetUp`].
    pub fn create(vm: &VmFd, index: u8) -> Result<Self, VcpuError> {
        let failed = |attempt| move |source| VcpuError::SetUp { attempt, index, source };
        let fd = vm.create_vcpu(index.into()).map_err(failed("create"))?;
        let mut init = kvm_vcpu_init::default();
        vm.get_preferred_target(&mut init).map_err(failed("ask for the CPU type of"))?;
        init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2;
        if index > 0 {
            init.features[0] |= 1 << KVM_ARM_VCPU_POWER_OFF;
        }
        let sve = vm.check_extension(Cap::ArmSve);
        if sve {
            init.features[0] |= 1 << KVM_ARM_VCPU_SVE;
        }
        // KVM offers both or neither.
        if vm.check_extension(Cap::ArmPtrAuthAddress) && vm.check_extension(Cap::ArmPtrAuthGeneric)
        {
            init.features[0] |=
                1 << KVM_ARM_VCPU_PTRAUTH_ADDRESS | 1 << KVM_ARM_VCPU_PTRAUTH_GENERIC;
        }
        fd.vcpu_init(&init).map_err(failed("initialise"))?;
        if sve {
            let feature = KVM_ARM_VCPU_SVE.cast_signed();
            fd.vcpu_finalize(&feature).map_err(failed("finalise SVE of"))?;
        }
        Ok(Self { index, fd, target: init.target, features: init.features[0] })
    }

    /// Counted from 0.
    pub fn index(&self) -> u8 {
        self.index
    }

    /// Which kind of vCPU it is, and with what, by KVM's numbers.
    pub(super) fn kind(&self) -> (u32, u32) {
        (self.target, self.features)
    }

    /// For what is asked of KVM while it does not run.
    pub(super) fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// The means to make [`Self::run`] return, from any thread.
    ///
    /// # Errors
    /// [`VcpuError::SetUp`].
    pub fn kick(&self) -> Result<Kick, VcpuError> {
        Kick::new(&self.fd).map_err(|error| VcpuError::SetUp {
            attempt: "map the run structure of",
            index: self.index,
            source: kvm_ioctls::Error::new(error.raw_os_error().unwrap_or(libc::EIO)),
        })
    }

    /// Has it begin at `entry`, as the boot CPU of an ARM64 Linux
    /// (Documentation/arch/arm64/booting.rst, section 4).
    ///
    /// # Errors
    /// [`VcpuError::SetUp`].
    pub fn set_boot_registers(
        &self,
        entry: GuestAddress,
        fdt: GuestAddress,
    ) -> Result<(), VcpuError> {
        for (attempt, register, value) in [
            ("set PSTATE of", Register::PSTATE, PSTATE_EL1_MASKED),
            ("set PC of", Register::PC, entry.0),
            ("set X0 of", Register::X0, fdt.0),
        ] {
            self.fd
                .set_one_reg(register.id(), &value.to_le_bytes())
                .map_err(|source| VcpuError::SetUp { attempt, index: self.index, source })?;
        }
        Ok(())
    }

    /// Affinity, as the device tree names CPUs.
    pub fn affinity(&self) -> u64 {
        layout::mpidr_affinity(self.index)
    }

    /// Runs the guest on this thread. Accesses to devices are served on the way.
    ///
    /// # Errors
    /// [`VcpuError::Run`] and [`VcpuError::GaveUp`]: the machine cannot go on.
    pub fn run(&mut self, bus: &Bus) -> Result<Exit, VcpuError> {
        loop {
            let reason = match self.fd.run() {
                Ok(VcpuExit::MmioRead(address, data)) => {
                    bus.read(address, data);
                    continue;
                }
                Ok(VcpuExit::MmioWrite(address, data)) => {
                    bus.write(address, data);
                    continue;
                }
                Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => {
                    return Ok(Exit::Shutdown);
                }
                Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => return Ok(Exit::Reset),
                Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _)) => return Ok(Exit::Crash),
                Ok(other) => format!("{other:?}"),
                Err(source) if source.errno() == libc::EINTR => {
                    if self.kicked() {
                        return Ok(Exit::Kicked);
                    }
                    // A signal without the flag is a kick that came too late for an earlier run.
                    continue;
                }
                Err(source) => {
                    let registers = self.registers();
                    return Err(VcpuError::Run { index: self.index, registers, source });
                }
            };
            let registers = self.registers();
            return Err(VcpuError::GaveUp { index: self.index, reason, registers });
        }
    }

    /// Forgets a kick: the next [`Self::run`] stays in the guest.
    pub fn forget_kick(&mut self) {
        self.fd.set_kvm_immediate_exit(0);
    }

    fn kicked(&mut self) -> bool {
        self.fd.get_kvm_run().immediate_exit != 0
    }

    /// What helps to understand a failure; what cannot be read is left out.
    fn registers(&self) -> Registers {
        let read = |(name, register): (&'static str, Register)| {
            let mut value = [0; 8];
            self.fd.get_one_reg(register.id(), &mut value).ok()?;
            Some((name, u64::from_le_bytes(value)))
        };
        Registers(Register::SHOWN.into_iter().filter_map(read).collect())
    }
}

/// EL1 with its own stack pointer, all interrupts masked (ARM DDI 0487, "SPSR_EL1").
const PSTATE_EL1_MASKED: u64 = 0x3c5;

/// A core register by its place in `kvm_regs`
/// (Documentation/virt/kvm/api.rst, KVM_SET_ONE_REG).
#[derive(Clone, Copy)]
struct Register {
    offset_bytes: usize,
}

impl Register {
    const X0: Self = Self::user(std::mem::offset_of!(user_pt_regs, regs));
    const X30: Self = Self::user(std::mem::offset_of!(user_pt_regs, regs) + 30 * 8);
    const PC: Self = Self::user(std::mem::offset_of!(user_pt_regs, pc));
    const PSTATE: Self = Self::user(std::mem::offset_of!(user_pt_regs, pstate));
    const SP_EL1: Self = Self { offset_bytes: std::mem::offset_of!(kvm_regs, sp_el1) };
    const ELR_EL1: Self = Self { offset_bytes: std::mem::offset_of!(kvm_regs, elr_el1) };

    const SHOWN: [(&'static str, Self); 6] = [
        ("PC", Self::PC),
        ("PSTATE", Self::PSTATE),
        ("LR", Self::X30),
        ("SP_EL1", Self::SP_EL1),
        ("ELR_EL1", Self::ELR_EL1),
        ("X0", Self::X0),
    ];

    const fn user(offset_bytes: usize) -> Self {
        Self { offset_bytes: std::mem::offset_of!(kvm_regs, regs) + offset_bytes }
    }

    fn id(self) -> u64 {
        // Counted in 32-bit words.
        let index = (self.offset_bytes / 4) as u64;
        KVM_REG_ARM64 | KVM_REG_SIZE_U64 | u64::from(KVM_REG_ARM_CORE) | index
    }
}

/// Registers by name, for messages.
#[derive(Debug)]
pub struct Registers(Vec<(&'static str, u64)>);

impl fmt::Display for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (count, (name, value)) in self.0.iter().enumerate() {
            let separator = if count == 0 { "" } else { ", " };
            write!(f, "{separator}{name} {value:#x}")?;
        }
        Ok(())
    }
}
