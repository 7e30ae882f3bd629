//! Namespaces of one's own (namespaces(7)).
#![allow(unsafe_code)]

use std::io;
use std::time::{Duration, Instant};

/// Flags for clone3(2): nothing of the host's mounts, network, System V IPC, host name and processes.
pub const OF_A_CHILD: libc::c_int = OF_THIS_PROCESS | libc::CLONE_NEWPID;
/// The same, but processes: a process that has begun cannot leave those that it can name.
const OF_THIS_PROCESS: libc::c_int =
    libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;

/// How long threads that have done their work may take to be gone.
const PATIENCE: Duration = Duration::from_secs(5);

/// Leaves the namespaces of whoever started this process, but that of processes. Threads that start later
/// come along.
pub fn leave() -> io::Result<()> {
    unshare(OF_THIS_PROCESS)
}

/// Returns when this process has no thread but the calling one. One that was joined is not gone yet for the
/// kernel, which is a matter of microseconds.
pub fn alone() -> io::Result<()> {
    let begin = Instant::now();
    // In a process of one thread this flag asks for what is so already, and nothing happens; otherwise it
    // is EINVAL.
    while unshare(libc::CLONE_THREAD).is_err() {
        if begin.elapsed() > PATIENCE {
            return Err(io::Error::other("this process has other threads"));
        }
        std::thread::yield_now();
    }
    Ok(())
}

fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: no memory is involved; the descriptor table, which other threads may rely on, is not among
    // the flags that this file asks for.
    match unsafe { libc::unshare(flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_of_several_threads_is_not_alone() {
        // The harness has at least two.
        let (over, end) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || end.recv());
        assert!(unshare(libc::CLONE_THREAD).is_err());
        drop(over);
        assert!(other.join().unwrap().is_err());
    }
}
