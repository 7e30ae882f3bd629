//! A child that waits and does nothing, born where it shall be: clone3(2), which no safe crate offers.
#![allow(unsafe_code)]

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::process::{Pid, WaitOptions, waitpid};

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

/// Ends all children when it is dropped, however this process ends.
#[derive(Debug)]
pub(super) struct Lifeline {
    read: PipeReader,
    write: PipeWriter,
}

impl Lifeline {
    pub(super) fn new() -> io::Result<Self> {
        let (read, write) = io::pipe()?;
        Ok(Self { read, write })
    }
}

/// A child that nobody has waited for yet.
#[derive(Debug)]
pub(super) struct Child(Pid);

impl Child {
    pub(super) fn pid(&self) -> u32 {
        self.0.as_raw_nonzero().get().unsigned_abs()
    }

    /// Waits for its end, which somebody else brings about.
    pub(super) fn wait(self) -> io::Result<()> {
        waitpid(Some(self.0), WaitOptions::empty())?;
        Ok(())
    }
}

/// Makes a child, in `cgroup` if given.
pub(super) fn bear(lifeline: &Lifeline, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Child> {
    let number = |value: libc::c_int| {
        u64::try_from(value).expect("signals and descriptors are not negative")
    };
    let mut args = CloneArgs {
        exit_signal: number(libc::SIGCHLD),
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = number(cgroup.as_raw_fd());
    }
    let (read, write) = (lifeline.read.as_raw_fd(), lifeline.write.as_raw_fd());
    // SAFETY: `args` has the layout and size that the kernel is told, and the kernel writes nothing to our memory.
    // No CLONE_VM: the child runs on a copy, stack included. Other threads may have held locks at this moment, so
    // the child must take none: it goes straight to `wait_for_end`, which only makes system calls.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) };
    if pid == 0 {
        wait_for_end(read, write);
    }
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    Ok(Child(pid.expect("a process id of the kernel is positive")))
}

/// The whole life of a child.
fn wait_for_end(read: libc::c_int, write: libc::c_int) -> ! {
    let mut byte = 0_u8;
    // SAFETY: this process has copies of both descriptors, and nobody here uses them otherwise. Its own writing end
    // is closed so that the parent's is the last. The read ends with it; `byte` is ours. _exit runs no handlers.
    unsafe {
        libc::close(write);
        libc::read(read, (&raw mut byte).cast(), 1);
        libc::_exit(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_lives_until_the_lifeline_is_dropped() {
        let lifeline = Lifeline::new().unwrap();
        let child = bear(&lifeline, None).unwrap();
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.pid())).unwrap();
        let parent = format!("PPid:\t{}", std::process::id());
        assert!(status.contains(&parent), "{status}");
        drop(lifeline);
        child.wait().unwrap();
    }

    #[test]
    fn no_child_is_born_into_what_is_no_cgroup() {
        use std::os::fd::AsFd;
        let lifeline = Lifeline::new().unwrap();
        let directory = std::fs::File::open("/").unwrap();
        assert!(bear(&lifeline, Some(directory.as_fd())).is_err());
    }
}
