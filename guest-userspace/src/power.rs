//! How the machine ends: powered off when asked, or a kernel panic when PID 1 cannot go on.

use std::error::Error;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{self, Write as _};

use rustix::system::{RebootCommand, reboot};

/// Powers the machine off at once. Nothing is synced: what was written is thrown away with the
/// machine. Returns only with an error.
pub(crate) fn off() -> PowerError {
    match reboot(RebootCommand::PowerOff) {
        Ok(()) => PowerError::StillOn,
        Err(error) => PowerError::Refused(error.into()),
    }
}

/// Why the machine is still on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PowerError {
    #[error("cannot power off")]
    Refused(#[source] io::Error),
    #[error("the kernel powered off and the machine is still on")]
    StillOn,
}

/// Puts one line with the whole chain of causes where the host finds it: in the kernel's log, which
/// goes to the console, or on our own stderr when there is no log.
///
/// The caller then lets PID 1 end; the kernel panics on that, and a panic is what the host sees.
pub(crate) fn report(error: &dyn Error) {
    let mut line = format!("rundlet-init: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a string does not fail.
        let _ = write!(line, ": {error}");
        cause = error.source();
    }
    log(&line);
}

/// Puts one line into the kernel's log at level 3, `KERN_ERR`, or on stderr.
pub(crate) fn log(line: &str) {
    let text = format!("<3>{line}\n");
    let kmsg = OpenOptions::new().write(true).open("/dev/kmsg");
    let in_kmsg = rustix::process::getpid().is_init()
        && kmsg.is_ok_and(|mut kmsg| kmsg.write_all(text.as_bytes()).is_ok());
    if !in_kmsg {
        // With no console either, there is nowhere left to say it.
        let _ = writeln!(io::stderr(), "{line}");
    }
}
