//! The system calls of a zygote that no safe crate offers: a fork straight into a cgroup, with a pidfd
//! (clone3(2)), the end of children as a descriptor (signalfd(2)), and the ownership of a descriptor that
//! came with exec.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rundlet_jail::namespaces::OF_A_CHILD;
use rustix::net::{AddressFamily, SocketType, sockopt};

/// linux/sched.h; the constant of the libc crate has lost its only bit.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// linux/prctl.h.
const PR_GET_TID_ADDRESS: libc::c_int = 40;

/// Which side of a fork this is.
#[derive(Debug)]
pub(super) enum Fork {
    /// The new process.
    Child,
    /// The old one, and what it knows of the new one.
    Parent { pid: i32, pidfd: OwnedFd },
}

/// What of the host a child sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Namespaces {
    /// What the zygote sees.
    Shared,
    /// Mounts, network, IPC, host name and processes of its own: it is the first of them.
    New,
}

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

/// Makes a copy of this process, born in `cgroup` if given, and in namespaces of its own if they are
/// asked for. Fails if there are several threads: the copy would have only this one, and whatever lock
/// another one holds for ever.
pub(super) fn fork(cgroup: Option<BorrowedFd<'_>>, namespaces: Namespaces) -> io::Result<Fork> {
    // SAFETY: without pointers. In a process of one thread this flag asks for what is so already, and
    // nothing happens; otherwise it is EINVAL (unshare(2)).
    if unsafe { libc::unshare(libc::CLONE_THREAD) } != 0 {
        return Err(io::Error::other("this process has more than one thread"));
    }
    let mut pidfd: libc::c_int = -1;
    let mut args = CloneArgs {
        flags: flag(libc::CLONE_PIDFD),
        pidfd: address(&raw mut pidfd),
        exit_signal: flag(libc::SIGCHLD),
        ..CloneArgs::default()
    };
    if namespaces == Namespaces::New {
        args.flags |= flag(OF_A_CHILD);
    }
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = flag(cgroup.as_raw_fd());
    }
    if let Some(tid) = thread_id_of_libc() {
        args.flags |= flag(libc::CLONE_CHILD_SETTID) | flag(libc::CLONE_CHILD_CLEARTID);
        args.child_tid = tid;
    }
    // SAFETY: `args` has the layout and size that the kernel is told. No CLONE_VM: the child runs on a
    // copy of this memory, stack included, so that returning twice is sound; being the only thread, it
    // finds no lock held by somebody who is not there. The kernel writes to `pidfd`, which outlives the
    // call, and in the child's copy to the C library's thread id, as the C library's own fork does.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) };
    match i32::try_from(pid) {
        Ok(0) => Ok(Fork::Child),
        Ok(pid) if pid > 0 => {
            // SAFETY: the kernel made this descriptor for us just now (CLONE_PIDFD).
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Fork::Parent { pid, pidfd })
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Where the C library keeps this thread's id, so that a child can have its own there; with a stale one,
/// a child that signals or pins its main thread would mean the zygote. Not every kernel tells (then
/// nothing is lost but that), and not every C library points there: the value says.
fn thread_id_of_libc() -> Option<u64> {
    let mut tid: *mut libc::pid_t = std::ptr::null_mut();
    // SAFETY: the kernel writes one pointer to `tid` (prctl(2)).
    let told = unsafe { libc::prctl(PR_GET_TID_ADDRESS, &raw mut tid) } == 0;
    if !told || tid.is_null() {
        return None;
    }
    // SAFETY: the address was given to the kernel by the C library (set_tid_address(2)) as one that may be
    // written to when this thread ends, so it is mapped and aligned while the thread lives; only this
    // thread's start wrote to it.
    let value = unsafe { tid.read() };
    // SAFETY: no arguments.
    let own = unsafe { libc::gettid() };
    (value == own).then(|| address(tid))
}

fn address<T>(pointer: *mut T) -> u64 {
    u64::try_from(pointer.addr()).expect("addresses have 64 bits here")
}

fn flag(value: libc::c_int) -> u64 {
    u64::try_from(value).expect("flags and descriptors are not negative")
}

/// SIGCHLD as a descriptor. While this lives the signal is blocked; a child drops its copy, and with it
/// the block.
#[derive(Debug)]
pub(super) struct ChildSignal(OwnedFd);

impl ChildSignal {
    /// Takes the signal.
    pub(super) fn take() -> io::Result<Self> {
        // SAFETY: no handler. Whoever started us may have ignored the signal, which exec passes on, and
        // then children would vanish without a status to collect.
        if unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
        let set = child_signal();
        mask(libc::SIG_BLOCK, &set)?;
        // SAFETY: `set` is initialised.
        let number =
            unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel made this descriptor for us just now.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(number) }))
    }

    /// The descriptor to wait on.
    pub(super) fn descriptor(&self) -> &OwnedFd {
        &self.0
    }

    /// Forgets what was signalled. Signals of one kind do not queue up, so this is done before looking
    /// for children, not after.
    pub(super) fn drain(&self) -> io::Result<()> {
        let mut one = [0_u8; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::read(&self.0, &mut one) {
            Ok(_) => Ok(()),
            Err(error) if error == rustix::io::Errno::AGAIN => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for ChildSignal {
    fn drop(&mut self) {
        if let Err(error) = mask(libc::SIG_UNBLOCK, &child_signal()) {
            log::error!("cannot unblock SIGCHLD: {error}");
        }
    }
}

/// The set of signals that is SIGCHLD.
fn child_signal() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set, sigaddset adds to it a signal that exists.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
        set.assume_init()
    }
}

fn mask(how: libc::c_int, set: &libc::sigset_t) -> io::Result<()> {
    // SAFETY: `set` is initialised, and nobody asks for the old one.
    match unsafe { libc::pthread_sigmask(how, set, std::ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// A descriptor of our own for one that came with exec. Not by pidfd_getfd(2), which is a debugger's call and need not be
/// left to the service that starts a zygote.
fn duplicate(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: without pointers, and nobody's ownership is taken. A number that is no descriptor is EBADF.
    let fd = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel made this descriptor for us just now.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes over the seqpacket socket that came with exec under `number`.
pub(super) fn adopt_socket(number: i32) -> io::Result<OwnedFd> {
    let wrong = || io::Error::other("it is no unix socket of type seqpacket");
    let socket = duplicate(number)?;
    let family = sockopt::socket_domain(&socket).map_err(|_| wrong())?;
    if family != AddressFamily::UNIX || sockopt::socket_type(&socket)? != SocketType::SEQPACKET {
        return Err(wrong());
    }
    if number > 2 {
        // SAFETY: nothing in this program makes sockets of this type, so `number` came with exec, and it
        // is open, or there would be no duplicate; nobody here owns it. Closing it matters: a child that
        // kept it could pass for its zygote.
        drop(unsafe { OwnedFd::from_raw_fd(number) });
    }
    Ok(socket)
}
