#![allow(unsafe_code)]
//! The only unsafe code of the guest: system calls that rustix has no safe form of.
//!
//! What must hold: this program never starts a thread, so a forked child is an ordinary copy of it
//! and may allocate.

use std::ffi::CString;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, SocketFlags, SocketType, acceptfrom_with, socket_with};

/// `CLONE_INTO_CGROUP` of clone(2); wider than libc's type for flags.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `RNDADDENTROPY` and `RNDRESEEDCRNG` of random(4), the kernel's include/uapi/linux/random.h.
const ADD_ENTROPY: libc::Ioctl = 0x4008_5203;
const RESEED: libc::Ioctl = 0x5207;

/// `SIOCSIFFLAGS` of netdevice(7). libc's own constant has a type that its `ioctl` takes with glibc only.
const SET_INTERFACE_FLAGS: libc::Ioctl = 0x8914;

/// Highest signal number, signal(7).
pub(crate) const LAST_SIGNAL: i32 = 64;

/// Address of a vsock socket, vsock(7).
#[derive(Debug)]
pub(crate) struct VsockAddr {
    pub(crate) cid: u32,
    pub(crate) port: u32,
}

// SAFETY: `with_sockaddr` hands out a pointer to a whole `sockaddr_vm` on its stack, with its size.
unsafe impl SocketAddrArg for VsockAddr {
    unsafe fn with_sockaddr<R>(
        &self,
        f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R,
    ) -> R {
        // SAFETY: all-zero bytes are a valid `sockaddr_vm`.
        let mut raw: libc::sockaddr_vm = unsafe { zeroed() };
        raw.svm_family = libc::AF_VSOCK.try_into().unwrap_or(libc::sa_family_t::MAX);
        raw.svm_cid = self.cid;
        raw.svm_port = self.port;
        let length = size_of::<libc::sockaddr_vm>();
        f(
            ptr::from_ref(&raw).cast(),
            length.try_into().unwrap_or(SocketAddrLen::MAX),
        )
    }
}

/// A vsock stream socket that does not block.
pub(crate) fn vsock_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(
        AddressFamily::VSOCK,
        SocketType::STREAM,
        flags,
        None,
    )?)
}

/// Accepts a connection. The second value is the peer's context id, if the peer is on vsock.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, Option<u32>)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (fd, address) = acceptfrom_with(listener, flags)?;
    let Some(address) = address.filter(|a| a.address_family() == AddressFamily::VSOCK) else {
        return Ok((fd, None));
    };
    // SAFETY: the closure reads no more than the length that it is told.
    let cid = unsafe {
        address.with_sockaddr(|raw, length| {
            (length as usize >= size_of::<libc::sockaddr_vm>())
                .then(|| ptr::read_unaligned(raw.cast::<libc::sockaddr_vm>()).svm_cid)
        })
    };
    Ok((fd, cid))
}

/// Blocks `SIGCHLD` and returns a descriptor that becomes readable when one is pending.
pub(crate) fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: `set` is a live signal set for all three calls; the new descriptor has no other owner.
    unsafe {
        let mut set: libc::sigset_t = zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        check(libc::sigprocmask(
            libc::SIG_BLOCK,
            &raw const set,
            ptr::null_mut(),
        ))?;
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        let fd = check(libc::signalfd(-1, &raw const set, flags))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Every signal to its default action and none blocked: what a program may expect after execve(2).
pub(crate) fn default_signals() {
    // The kernel's `sigaction`: handler, flags, restorer and mask, all zero. Not through the C library,
    // which refuses two signals that it keeps for itself.
    let default = [0_u64; 4];
    let nothing = ptr::null_mut::<u64>();
    for signal in 1..=LAST_SIGNAL {
        // SAFETY: the default action runs no code of ours. SIGKILL and SIGSTOP refuse; they have it.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                &raw const default,
                nothing,
                size_of::<u64>(),
            )
        };
    }
    // SAFETY: `set` is a live, empty signal set.
    unsafe {
        let mut set: libc::sigset_t = zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, ptr::null_mut());
    }
}

/// Sends a signal by number, real-time signals included; a negative `target` is a process group.
pub(crate) fn kill(target: i32, signal: i32) -> io::Result<()> {
    // SAFETY: kill(2) takes two numbers.
    check(unsafe { libc::kill(target, signal) }).map(|_| ())
}

/// Which of the two processes [`fork`] returned in.
#[derive(Debug)]
pub(crate) enum Fork {
    Child,
    Parent(i32),
}

/// fork(2), into a cgroup v2 directory if one is given: entering it at birth spares the wait for all
/// CPUs that a later move costs.
///
/// The child has every signal blocked until it calls [`default_signals`]: one that is sent to it before
/// waits, also if this process ignores it.
pub(crate) fn fork(cgroup: Option<BorrowedFd<'_>>) -> io::Result<Fork> {
    // SAFETY: all-zero bytes are a valid `clone_args`.
    let mut args: libc::clone_args = unsafe { zeroed() };
    args.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    if let Some(fd) = cgroup {
        args.flags = CLONE_INTO_CGROUP;
        args.cgroup = u64::from(fd.as_raw_fd().unsigned_abs());
    }
    let size = size_of::<libc::clone_args>();
    // SAFETY: all-zero bytes are a valid signal set, and both sets live through the calls.
    let before: libc::sigset_t = unsafe {
        let (mut all, mut before) = (zeroed(), zeroed());
        libc::sigfillset(&raw mut all);
        check(libc::sigprocmask(
            libc::SIG_SETMASK,
            &raw const all,
            &raw mut before,
        ))?;
        before
    };
    // SAFETY: without CLONE_VM the child has memory of its own and no new stack is needed. This
    // process has one thread, so no lock of the C library is held in the child.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size) };
    let result = match i32::try_from(pid) {
        Ok(0) => return Ok(Fork::Child),
        Ok(pid) if pid > 0 => Ok(Fork::Parent(pid)),
        _ => Err(io::Error::last_os_error()),
    };
    // SAFETY: `before` is a signal set that the kernel has filled in.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut()) };
    result
}

/// Closes every descriptor from 3 up but `keep`. Only for a forked child, which must not use any
/// other owner of a descriptor afterwards.
pub(crate) fn close_others(keep: BorrowedFd<'_>) -> io::Result<()> {
    let keep = keep.as_raw_fd().unsigned_abs();
    for (first, last) in [(3, keep.saturating_sub(1)), (keep + 1, u32::MAX)] {
        if first <= last {
            // SAFETY: the caller gives up every descriptor in the range.
            let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
            if done != 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(())
}

/// execve(2). Returns only with an error.
pub(crate) fn execve(path: &CString, argv: &[CString], env: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        let ends = strings.iter().map(|string| string.as_ptr());
        ends.chain([ptr::null()]).collect()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both arrays end with a null pointer and point to strings that outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Ends this process at once: nothing is flushed, nothing dropped.
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: _exit(2) does not return to anything that could be left inconsistent.
    unsafe { libc::_exit(code) }
}

/// Brings the loopback interface up; the kernel gives it its addresses then (netdevice(7)).
pub(crate) fn loopback_up() -> io::Result<()> {
    // Any socket carries interface ioctls, also where the kernel has no IP.
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: all-zero bytes are a valid `ifreq`, and one with an empty name.
    let mut request: libc::ifreq = unsafe { zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(c"lo".to_bytes()) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING)
        .try_into()
        .unwrap_or(libc::c_short::MAX);
    // SAFETY: `request` is a whole `ifreq` that lives through the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), SET_INTERFACE_FLAGS, &raw const request) })
        .map(|_| ())
}

/// Gives random bytes to the kernel's generator and has them counted as such. `random` is /dev/random.
pub(crate) fn add_entropy(random: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    let overflow = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let size = i32::try_from(bytes.len()).map_err(overflow)?;
    let bits = size.checked_mul(8).ok_or(io::ErrorKind::InvalidInput)?;
    // `struct rand_pool_info`: bits, bytes, the bytes themselves.
    let mut info = [bits.to_ne_bytes(), size.to_ne_bytes()].concat();
    info.extend_from_slice(bytes);
    // SAFETY: the kernel reads the two numbers and as many bytes as the second says, which `info` has.
    check(unsafe { libc::ioctl(random.as_raw_fd(), ADD_ENTROPY, info.as_ptr()) }).map(|_| ())
}

/// Has everything that the kernel's generator hands out from now on depend on all it was ever given.
pub(crate) fn reseed(random: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the request takes no argument.
    check(unsafe { libc::ioctl(random.as_raw_fd(), RESEED, 0) }).map(|_| ())
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}
