//! The body of the file `state`: everything of a sandbox that is not in its memory.
//!
//! One struct per thing that has state, each taken apart without `..` where it is restored, so that a
//! field that is saved and forgotten does not compile. Here is the whole; the parts are beside what they
//! belong to.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::format::Header;
use crate::devices::state::DevicesState;
use crate::kvm::state::VmState;
use crate::memory::{Kind, regions};
use crate::spec::{MAX_LABELS, MEMORY_MIB, MemorySpec, VCPUS, WINDOW_MIB};
use crate::vcpu::state::VcpuState;

/// A paused sandbox.
#[derive(Debug, Serialize, Deserialize)]
pub struct State {
    /// What it was made from, see [`crate::spec::Binding`].
    pub binding: BTreeMap<String, String>,
    /// How much memory it has.
    pub memory: MemoryState,
    /// The virtual machine's chips and clock.
    pub vm: VmState,
    /// Every vCPU, in order.
    pub vcpus: Vec<VcpuState>,
    /// Every device.
    pub devices: DevicesState,
}

/// [`MemorySpec`], saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryState {
    /// Everything, window included, in MiB.
    pub mib: u32,
    /// The I/O window, in MiB.
    pub window_mib: u32,
}

impl From<MemorySpec> for MemoryState {
    fn from(MemorySpec { mib, window_mib }: MemorySpec) -> Self {
        Self { mib, window_mib }
    }
}

impl From<MemoryState> for MemorySpec {
    fn from(MemoryState { mib, window_mib }: MemoryState) -> Self {
        Self { mib, window_mib }
    }
}

impl State {
    /// Whether numbers that belong together do; the words say which do not.
    pub(super) fn check(&self, header: &Header) -> Result<(), String> {
        let MemoryState { mib, window_mib } = self.memory;
        let window_fits = WINDOW_MIB.contains(&window_mib) && window_mib.is_power_of_two();
        if !MEMORY_MIB.contains(&mib) || !window_fits {
            return Err(format!("{mib} MiB of memory with a window of {window_mib}"));
        }
        let lengths = file_lengths(&self.memory.into());
        if lengths != (header.memory.len, header.window.len) {
            return Err(format!("{mib} MiB of memory are not what the files hold"));
        }
        let vcpus = self.vcpus.len();
        if u8::try_from(vcpus).map_or(true, |count| !VCPUS.contains(&count)) {
            return Err(format!("{vcpus} vCPUs"));
        }
        if self.binding.len() > MAX_LABELS {
            return Err(format!("{} labels", self.binding.len()));
        }
        self.devices.check()
    }
}

/// How long the files `memory` and `window` are.
#[must_use]
pub fn file_lengths(spec: &MemorySpec) -> (u64, u64) {
    let total = |wanted: Kind| {
        let pieces = regions(spec);
        let lengths = pieces.iter().filter(|(_, kind)| *kind == wanted);
        lengths.map(|(range, _)| range.len).sum()
    };
    (total(Kind::Private), total(Kind::Window))
}
