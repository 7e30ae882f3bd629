//! A process that waits and does nothing, born where it shall be: clone3(2), which no safe crate offers.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::process::Pid;

/// linux/sched.h; the constant of the libc crate has lost its only bit.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args` of linux/sched.h, up to `cgroup`.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Makes a process, in `cgroup` if given. It is a child of our parent's, and lives until the other end of `lifeline`,
/// of which it keeps nothing else, is closed.
pub(super) fn bear(lifeline: BorrowedFd<'_>, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Pid> {
    let number =
        |value: libc::c_int| u64::try_from(value).expect("flags and descriptors are not negative");
    // Without an exit signal: it is ours, which our parent waits for.
    let mut args = CloneArgs {
        flags: number(libc::CLONE_PARENT),
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = number(cgroup.as_raw_fd());
    }
    let lifeline = lifeline.as_raw_fd();
    // SAFETY: `args` has the layout and size that the kernel is told, and the kernel writes nothing to our memory.
    // No CLONE_VM: the child runs on a copy, stack included. Other threads may have held locks at this moment, so
    // the child must take none: it goes straight to `wait_for_end`, which only makes system calls.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) };
    if pid == 0 {
        wait_for_end(lifeline);
    }
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    Ok(pid.expect("a process id of the kernel is positive"))
}

/// The whole life of such a process.
fn wait_for_end(lifeline: libc::c_int) -> ! {
    let mut byte = 0_u8;
    // SAFETY: this process has a copy of the descriptor, and nobody here uses it otherwise. The read ends with the
    // other side; `byte` is ours. _exit runs no handlers.
    unsafe {
        libc::read(lifeline, (&raw mut byte).cast(), 1);
        libc::_exit(0)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn it_is_a_sibling_that_waits() {
        let (lifeline, _end) = io::pipe().unwrap();
        let pid = bear(lifeline.as_fd(), None).unwrap();
        let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap();
        let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
        assert!(status.contains(&format!("PPid:\t{parent}\n")), "{status}");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }

    #[test]
    fn nothing_is_born_into_what_is_no_cgroup() {
        let directory = File::open("/").unwrap();
        assert!(bear(directory.as_fd(), Some(directory.as_fd())).is_err());
    }
}
