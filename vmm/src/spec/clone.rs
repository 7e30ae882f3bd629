//! What a clone shall be: only what it does not inherit from its template.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::jail::jail;
use super::{ConsoleSpec, SOCKET_SUFFIX, SpecError, check_disks, console, socket, text};
use crate::jail::JailSpec;
use crate::wire;

/// Labels that a template may carry.
pub const MAX_LABELS: usize = 16;
/// Bytes of a label's name, and of its value.
pub const MAX_LABEL: usize = 256;

/// What a template was made from, as its maker names it: compared, never understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Binding(BTreeMap<String, String>);

impl Binding {
    /// Name and value of each label.
    #[must_use]
    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.0
    }
}

impl TryFrom<BTreeMap<String, String>> for Binding {
    type Error = SpecError;

    fn try_from(labels: BTreeMap<String, String>) -> Result<Self, SpecError> {
        if labels.len() > MAX_LABELS {
            return Err(SpecError::TooMany {
                field: "binding",
                count: labels.len(),
                max: MAX_LABELS,
            });
        }
        for (name, value) in &labels {
            if name.is_empty() || name.len() > MAX_LABEL || value.len() > MAX_LABEL {
                let why =
                    format!("name and value have at most {MAX_LABEL} bytes, the name at least one");
                return Err(text(format!("binding.{name}"), why));
            }
        }
        Ok(Self(labels))
    }
}

/// A clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloneSpec {
    /// What the template must have been made from.
    pub binding: Binding,
    /// Where the disks are now: the template's disks in the template's order.
    pub disks: Vec<CloneDiskSpec>,
    /// Host side unix socket of the vsock device.
    pub vsock: Option<PathBuf>,
    /// Where the console's output goes.
    pub console: Option<ConsoleSpec>,
    /// What it is shut in, if the host's root wants it so.
    pub jail: Option<JailSpec>,
}

/// One disk of a clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloneDiskSpec {
    /// Its name.
    pub id: String,
    /// Where its backend listens.
    pub socket: PathBuf,
}

impl TryFrom<wire::CloneSpec> for CloneSpec {
    type Error = SpecError;

    fn try_from(wire: wire::CloneSpec) -> Result<Self, SpecError> {
        check_disks(wire.disks.iter().map(|disk| (&*disk.id, &*disk.socket)))?;
        if let Some(vsock) = &wire.vsock {
            socket("vsock.socket", &vsock.socket, SOCKET_SUFFIX)?;
        }
        let vsock = wire.vsock.map(|vsock| vsock.socket);
        let jail = |wire| jail(wire, vsock.as_deref());
        let disk = |wire::CloneDisk { id, socket }| CloneDiskSpec { id, socket };
        Ok(Self {
            binding: wire.binding.try_into()?,
            disks: wire.disks.into_iter().map(disk).collect(),
            jail: wire.jail.map(jail).transpose()?,
            vsock,
            console: wire.console.map(console).transpose()?,
        })
    }
}
