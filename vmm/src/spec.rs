//! What a sandbox shall be: validated, with no trace of how it was written down.

use std::path::PathBuf;

/// The vsock device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VsockSpec {
    /// The guest's context id, 3 or more.
    pub cid: u32,
    /// Host side unix socket; guest-dialled ports are `<socket>_<port>`.
    pub socket: PathBuf,
}
