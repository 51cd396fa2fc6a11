//! The state of one vCPU.

use rotifer_snapshot::Tag;
use serde::{Deserialize, Serialize};

use super::register::RegisterId;
use super::{Feature, SectionState, StateError};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuState {
    /// Which registers, by KVM's identifiers and in KVM's order; the counters are not among them.
    ids: Vec<u64>,
    /// Their values one after the other, each as long as its identifier says, little-endian.
    values: Vec<u8>,
    /// Whether it runs.
    pub power: Power,
    /// An asynchronous error that it has not taken yet.
    pub pending_error: Option<PendingError>,
}

/// Whether a vCPU runs. Encoded by position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Power {
    /// It runs, or waits for an interrupt.
    On,
    /// It waits for PSCI CPU_ON.
    Off,
}

/// An SError. What it is about is known only on CPUs with the RAS extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingError {
    /// The syndrome.
    pub syndrome: Option<u64>,
}

impl SectionState for VcpuState {
    const TAG: Tag = Tag { kind: *b"VCPU", version: 1 };
}

/// How the section of a vCPU is called.
pub fn section_name(index: usize) -> String {
    format!("vcpu-{index}")
}

impl VcpuState {
    /// A state without registers yet.
    pub fn new(power: Power, pending_error: Option<PendingError>) -> Self {
        Self { ids: Vec::new(), values: Vec::new(), power, pending_error }
    }

    /// Appends a register. `value` is as long as `id` says.
    pub fn push(&mut self, id: RegisterId, value: &[u8]) {
        self.ids.push(id.0);
        self.values.extend_from_slice(value);
    }

    /// Which registers there are.
    pub fn ids(&self) -> impl Iterator<Item = RegisterId> {
        self.ids.iter().copied().map(RegisterId)
    }

    /// All registers with their values, if they are those of `list`: the vCPU has no others, and
    /// none stays as it was at power-on by omission.
    ///
    /// # Errors
    /// [`StateError::Register`] names the first that is too much or missing.
    pub fn registers(
        &self,
        section: &str,
        list: &[RegisterId],
    ) -> Result<Vec<(RegisterId, &[u8])>, StateError> {
        self.check_ids(section, list)?;
        self.values(section)
    }

    fn check_ids(&self, section: &str, list: &[RegisterId]) -> Result<(), StateError> {
        let known = list.iter().copied().filter(|id| !id.is_counter());
        // The same order is what the same kernel gives; another order is no other state.
        if known.clone().map(|id| id.0).eq(self.ids.iter().copied()) {
            return Ok(());
        }
        let mut known: Vec<u64> = known.map(|id| id.0).collect();
        let mut saved = self.ids.clone();
        known.sort_unstable();
        saved.sort_unstable();
        let problem = |id: u64, problem| StateError::Register {
            name: section.into(),
            register: RegisterId(id).to_string(),
            problem,
        };
        if let Some(pair) = saved.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(problem(pair[0], "there twice"));
        }
        if let Some(id) = saved.iter().find(|id| known.binary_search(id).is_err()) {
            return Err(problem(*id, "none of this host's vCPUs"));
        }
        match known.iter().find(|id| saved.binary_search(id).is_err()) {
            Some(id) => Err(problem(*id, "missing")),
            None => Ok(()),
        }
    }

    /// All registers with their values, whatever they are.
    ///
    /// # Errors
    /// [`StateError::Count`] if the values do not fill the registers.
    pub fn values(&self, section: &str) -> Result<Vec<(RegisterId, &[u8])>, StateError> {
        let count_error = |expected| StateError::Count {
            name: section.into(),
            what: "bytes of register values",
            found: self.values.len(),
            expected,
        };
        let mut rest = self.values.as_slice();
        let mut registers = Vec::with_capacity(self.ids.len());
        for id in self.ids.iter().copied().map(RegisterId) {
            let value = id.bytes().and_then(|bytes| rest.split_at_checked(bytes));
            let (value, after) = value.ok_or_else(|| count_error(self.expected_bytes()))?;
            registers.push((id, value));
            rest = after;
        }
        if rest.is_empty() { Ok(registers) } else { Err(count_error(self.expected_bytes())) }
    }

    fn expected_bytes(&self) -> usize {
        let bytes = self.ids.iter().filter_map(|id| RegisterId(*id).bytes());
        bytes.fold(0, usize::saturating_add)
    }

    /// What the guest has seen of this CPU.
    ///
    /// # Errors
    /// [`StateError::Count`].
    pub fn features(&self, section: &str) -> Result<Vec<Feature>, StateError> {
        let registers = self.values(section)?;
        let told = registers.into_iter().filter(|(id, _)| id.is_identification());
        Ok(told.flat_map(|(id, value)| id.features(value)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: [RegisterId; 3] = [
        RegisterId(0x6030_0000_0010_0000),
        RegisterId::VIRTUAL_COUNT,
        RegisterId(0x6040_0000_0010_0054),
    ];

    fn state() -> VcpuState {
        let mut state = VcpuState::new(Power::On, None);
        state.push(LIST[0], &7_u64.to_le_bytes());
        state.push(LIST[2], &9_u128.to_le_bytes());
        state
    }

    fn refusal(state: &VcpuState) -> String {
        state.registers("vcpu-3", &LIST).unwrap_err().to_string()
    }

    #[test]
    fn registers_come_back_with_values_of_their_size_whatever_the_order_of_the_list() {
        let state = state();
        let mut list = LIST;
        for _ in 0..2 {
            let registers = state.registers("vcpu-0", &list).unwrap();
            assert_eq!(registers[0], (LIST[0], 7_u64.to_le_bytes().as_slice()));
            assert_eq!(registers[1], (LIST[2], 9_u128.to_le_bytes().as_slice()));
            list.reverse();
        }
    }

    #[test]
    fn a_register_too_many_too_few_or_twice_is_refused_by_name() {
        let mut foreign = state();
        foreign.ids[0] ^= 1 << 7;
        let text = refusal(&foreign);
        assert_eq!(
            text,
            "section vcpu-3 of the machine state: register CORE.80 is none of this host's vCPUs"
        );
        let mut short = state();
        short.ids.pop();
        assert!(refusal(&short).ends_with("register CORE.54 is missing"));
        let mut twice = state();
        twice.ids[1] = twice.ids[0];
        assert!(refusal(&twice).ends_with("register CORE.0 is there twice"));
    }

    #[test]
    fn values_that_do_not_fill_the_registers_are_refused_with_their_size() {
        let mut state = state();
        state.values.push(0);
        assert!(refusal(&state).contains("25 bytes of register values, this machine 24"));
        state.values.truncate(3);
        assert!(refusal(&state).contains("has 3 bytes"));
    }
}
