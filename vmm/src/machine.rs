//! The machine: KVM, RAM, interrupt controller, vCPUs and devices, put together in one way.
//!
//! ```text
//!  Machine::boot ───── assemble ── load kernel, device tree, boot registers ─┐
//!  Machine::restore ── assemble ── fill RAM, load the saved state ────────────┤
//!                         │                                                   ▼
//!                         │                              start io thread and vCPU threads, run
//!                         ▼                                                   │
//!   open KVM, create VM, GIC, vCPUs; init GIC;                                ▼
//!   map RAM; make the devices; wire interrupts and doorbells               Machine
//!                                                                           │   ▲
//!                                                                     pause ▼   │ drop
//!                                                 MachineState ◀── save ── Paused
//! ```
//! The main thread owns it by value. What happens inside is told through one eventfd, `wake`,
//! upon which the main thread asks [`Machine::take_outcome`].

mod gic;
mod kick;
mod load;
mod pause;
mod state;
mod threads;
mod vcpu;
mod vm;

use std::sync::Arc;

use rotifer_devices::GuestMemory;
use rotifer_devices::io::{IoThread, IoThreadError, Parked};
use rotifer_devices::virtio::net::Limits;
use vmm_sys_util::eventfd::EventFd;

use self::gic::Gic;
pub use self::gic::GicError;
pub use self::load::LoadError;
pub use self::pause::{PauseError, Paused};
pub use self::state::{RestoreError, SaveError};
pub use self::threads::ThreadError;
use self::threads::Threads;
pub use self::vcpu::VcpuError;
use self::vcpu::{Exit, Vcpu};
use self::vm::Vm;
pub use self::vm::VmError;
use crate::boot::{Boot, BootError};
use crate::config::Plan;
pub use crate::machine_state::{Hardware, Then};
use crate::machine_state::{MachineState, StateError};
use crate::memory::{self, MemoryError};
use crate::outcome::Outcome;
use crate::table::{DiskLayers, DiskOverlay, Table, TableError, Wanted};

/// Why a machine cannot be made or cannot go on.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
#[expect(missing_docs, reason = "each is the error of the part it is named after")]
pub enum MachineError {
    Boot(#[from] BootError),
    Vm(#[from] VmError),
    Gic(#[from] GicError),
    Vcpu(#[from] VcpuError),
    Memory(#[from] MemoryError),
    Table(#[from] TableError),
    Load(#[from] LoadError),
    Restore(#[from] RestoreError),
    Io(#[from] IoThreadError),
    Thread(#[from] ThreadError),
    Pause(#[from] PauseError),
}

impl MachineError {
    /// Whether another configuration would help, on this host.
    pub fn is_users_mistake(&self) -> bool {
        matches!(
            self,
            Self::Boot(_)
                | Self::Gic(GicError::TooManyCpus { .. })
                | Self::Vm(VmError::AddressSpace { .. })
                | Self::Table(
                    TableError::Console(_) | TableError::Block(_) | TableError::LeftOver { .. }
                )
                | Self::Restore(RestoreError::State(StateError::OtherMachine { .. }))
        )
    }
}

/// A machine whose parts exist and are connected. Fields are dropped in this order: guest code
/// ends first, device code second, and then what both use.
pub struct Machine {
    vcpus: Threads,
    /// While the machine is paused.
    parked: Option<Parked>,
    io: IoThread,
    table: Table,
    /// Also held for as long as the interrupts of the machine are.
    gic: Gic,
    _vm: Vm,
    /// What the vCPUs and devices work on.
    memory: Arc<GuestMemory>,
}

/// A machine that no code has run in yet: its vCPUs can still be given registers.
struct Assembled {
    vm: Vm,
    gic: Gic,
    vcpus: Vec<Vcpu>,
    memory: Arc<GuestMemory>,
    table: Table,
}

impl Machine {
    /// Assembles the machine that `plan` describes, and lets its kernel run. `wake` is written
    /// whenever [`Self::take_outcome`] may have something to tell.
    ///
    /// # Errors
    /// See [`MachineError`]; nothing of the machine is left then.
    pub fn boot(plan: Plan, wake: &EventFd) -> Result<Self, MachineError> {
        let Plan { vcpu_count, ram_bytes, boot, disks, vsock, entropy, networks, console } = plan;
        let boot = Boot::prepare(boot, ram_bytes)?;
        let layers = DiskLayers::new();
        let devices = Wanted { console, disks, layers, vsock, entropy, networks };
        let assembled = Assembled::new(Hardware { vcpu_count, ram_bytes, devices }, wake)?;
        load::load(boot, &assembled, ram_bytes)?;
        tracing::debug!("timeline: kernel and device tree are in RAM");
        let mut machine = assembled.start(wake)?;
        tracing::debug!("timeline: threads are started");
        machine.vcpus.run()?;
        Ok(machine)
    }

    /// Assembles the machine that `hardware` describes as a boot does, has `fill` see to its RAM,
    /// and lets it go on as `state` says. What `fill` has put there is the RAM that was read after
    /// [`Paused::save`]; it may be loaded as it is touched. Where the guest's counter stood, it
    /// goes on; its generation identifier is a new one, and its vsock connections are gone.
    ///
    /// # Errors
    /// See [`MachineError`]; nothing of the machine is left then.
    pub fn restore<E>(
        hardware: Hardware,
        state: MachineState,
        fill: impl FnOnce(&Arc<GuestMemory>) -> Result<(), E>,
        wake: &EventFd,
        then: Then,
    ) -> Result<Self, MachineError>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let assembled = Assembled::new(hardware, wake)?;
        fill(&assembled.memory).map_err(|error| RestoreError::Fill(error.into()))?;
        tracing::debug!("timeline: RAM is seen to");
        state::load(&assembled, state)?;
        assembled.table.begin_overlays().map_err(RestoreError::Overlay)?;
        let mut machine = assembled.start(wake)?;
        match then {
            Then::Run => machine.vcpus.run()?,
            Then::StayPaused => machine.pause()?.stay(),
        }
        tracing::debug!("timeline: the machine is restored");
        Ok(machine)
    }

    /// Stops vCPUs and devices, and returns when nothing of the machine moves.
    ///
    /// # Errors
    /// See [`PauseError`].
    pub fn pause(&mut self) -> Result<Paused<'_>, PauseError> {
        Paused::new(self)
    }

    /// Guest RAM, which changes as long as the machine is not paused.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The overlays of its disks. Their files have all that the guest wrote while the machine is paused.
    pub fn overlays(&self) -> &[DiskOverlay] {
        &self.table.overlays
    }

    /// Whether a [`Paused`] has left it paused.
    pub fn is_paused(&self) -> bool {
        self.parked.is_some()
    }

    /// Changes the rate limits of the network device `id`.
    pub fn limit_network(&self, id: &str, limits: Limits) {
        self.table.limit_network(id, limits);
    }

    /// What the machine has come to, if it has ended.
    ///
    /// # Errors
    /// A vCPU cannot go on.
    pub fn take_outcome(&mut self) -> Result<Option<Outcome>, MachineError> {
        if self.table.panic_notifier.panicked() {
            return Ok(Some(Outcome::Panicked));
        }
        Ok(match self.vcpus.take_exit().transpose()? {
            Some(Exit::Shutdown) => Some(Outcome::Shutdown),
            Some(Exit::Reset) => Some(Outcome::Reset),
            Some(Exit::Crash) => Some(Outcome::Panicked),
            Some(Exit::Kicked) | None => None,
        })
    }

    /// Whether [`Self::take_outcome`] has something to tell, as far as is known.
    fn has_ended(&self) -> bool {
        self.table.panic_notifier.panicked() || self.vcpus.has_exit()
    }

    /// Writes what is left of the console's output.
    pub fn finish_output(&self) {
        self.table.console.finish();
    }
}

impl Assembled {
    /// The one recipe for a machine, in the order that costs least: KVM first, whose refusals are
    /// the likeliest; the GIC before the vCPUs, whose number it bounds; interrupts after both.
    fn new(hardware: Hardware, wake: &EventFd) -> Result<Self, MachineError> {
        let Hardware { vcpu_count, ram_bytes, devices } = hardware;
        lap("assembly begins");
        let vm = Vm::create(ram_bytes)?;
        let gic = Gic::create(vm.fd(), vcpu_count)?;
        let vcpus = (0..vcpu_count)
            .map(|index| Vcpu::create(vm.fd(), index))
            .collect::<Result<Vec<_>, _>>()?;
        gic.init()?;
        lap("KVM has a machine with vCPUs and GIC");
        let memory = Arc::new(memory::map(ram_bytes)?);
        vm.add_memory(&memory)?;
        lap("RAM is mapped");
        let wake = wake.try_clone().map_err(VmError::Wake)?;
        let table = Table::build(devices, vcpu_count, &memory, wake)?;
        lap("devices are made");
        for entry in &table.entries {
            vm.wire(entry)?;
        }
        lap("devices are wired");
        Ok(Self { vm, gic, vcpus, memory, table })
    }

    /// Starts the threads; no vCPU runs yet.
    fn start(self, wake: &EventFd) -> Result<Machine, MachineError> {
        let Self { vm, gic, vcpus, memory, table } = self;
        let io = IoThread::start("io", table.subscribers())?;
        let vcpus = Threads::start(vcpus, &Arc::new(table.bus()), wake)?;
        Ok(Machine { vcpus, parked: None, io, table, gic, _vm: vm, memory })
    }
}

/// For those who measure: a step of the way is done, or begins.
fn lap(what: &'static str) {
    tracing::debug!("timeline: {what}");
}

#[cfg(test)]
mod tests;
