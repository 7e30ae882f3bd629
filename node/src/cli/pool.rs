//! `rundlet pool`.

use std::path::PathBuf;

use argh::FromArgs;

/// Makes the cgroups of a daemon's sandboxes ahead, and stays, for systemd to hold them; the daemon itself makes them
/// as well where this has not run.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "pool")]
pub(crate) struct Pool {
    /// the daemon's configuration (default: none, everything has a default)
    #[argh(option)]
    pub(crate) config: Option<PathBuf>,
}
