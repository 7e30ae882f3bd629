//! Who a sandbox is, and where.

use std::path::Path;

use rundlet_jail::rights::Identity;

use super::{SpecError, path, text};
use crate::jail::JailSpec;
use crate::wire;

/// `vsock` is where the sandbox's socket is: what the guest dials is found next to it when the root is all that
/// is left.
pub(super) fn jail(wire: wire::Jail, vsock: Option<&Path>) -> Result<JailSpec, SpecError> {
    let wire::Jail { uid, gid, root } = wire;
    path("jail.root", &root)?;
    if !root.is_absolute() {
        return Err(text("jail.root", "must be an absolute path".to_owned()));
    }
    if vsock.is_some_and(|socket| socket.parent() != Some(&root)) {
        let why = format!("must be directly in jail.root, {}", root.display());
        return Err(text("vsock.socket", why));
    }
    let identity = Identity::new(uid, gid);
    let identity = identity.ok_or_else(|| {
        let why = format!("{uid} and {gid} must both be 1 to {}", u32::MAX - 1);
        text("jail.uid, jail.gid", why)
    })?;
    Ok(JailSpec { identity, root })
}
