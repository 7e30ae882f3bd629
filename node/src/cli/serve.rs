//! `rundlet serve`.

use std::path::PathBuf;

use argh::FromArgs;

/// Serves the API of this host's sandboxes on a unix socket, until SIGTERM; sandboxes outlive it, and the next daemon
/// finds them again.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "serve")]
pub(crate) struct Serve {
    /// the daemon's configuration (default: none, everything has a default)
    #[argh(option)]
    pub(crate) config: Option<PathBuf>,

    /// only say whether the configuration is good
    #[argh(switch)]
    pub(crate) check: bool,
}
