//! The walls around the daemon, put up when every disk is open and every socket bound, before the first
//! front end is listened to.
//!
//! Always: a system call filter, and no way to more rights. With `jail` in the configuration, which takes
//! root: namespaces of its own, an empty root, a user and a group without any capability. What is left of the
//! file system are open images, and the directories of scratch layers, from which no path leads anywhere.
//!
//! In a jail the daemon cannot remove its socket files; whoever made the directory does.

use anyhow::Context as _;
use rundlet_jail::filter::{
    Allowed, Filter, Test, absent, absent_unless, call, one_of, only, start_of_a_thread,
};
use rundlet_jail::namespaces;
use rundlet_jail::rights::{self, Identity};
use rundlet_jail::root::{self, Root};
use rustix::fs::OFlags;

use crate::config::{Config, DiskConfig};
use crate::descriptors;
use crate::listener::Listener;
use crate::scratch::FLAGS;

/// Closes this process off. From here on what is not open stays closed.
pub fn close(config: &Config, listeners: &[Listener]) -> anyhow::Result<()> {
    namespaces::alone().context("there are threads already")?;
    match config.jail {
        Some(identity) => shut_in(identity, listeners)?,
        None => {
            descriptors::listed_in(descriptors::plain()?);
            rights::no_more()?;
        }
    }
    let keeps = config.listeners.iter().any(|one| one.disk.is_kept());
    let scratch = |disk: &DiskConfig| matches!(disk, DiskConfig::Scratch { .. });
    let writes = config.listeners.iter().any(|one| scratch(&one.disk));
    let mut calls = serving();
    let mut opens = Vec::new();
    if writes {
        calls.extend(writing());
        // The flag for long files is rustix's.
        opens.extend(FLAGS.map(|flags| flags | OFlags::LARGEFILE));
    }
    if keeps {
        calls.extend(keeping());
        opens.push(OFlags::RDONLY | OFlags::CLOEXEC);
    }
    // Files that do not exist yet, in the directory of layers; that directory. Whoever wants another one (an
    // allocator counts processors) has to do without.
    let opens: Vec<u32> = opens.iter().map(|flags| flags.bits()).collect();
    calls.push(match &opens[..] {
        [] => absent(libc::SYS_openat),
        flags => absent_unless(libc::SYS_openat, 2, flags),
    });
    Filter::compile(calls)?.load()?;
    Ok(())
}

fn shut_in(identity: Identity, listeners: &[Listener]) -> anyhow::Result<()> {
    descriptors::listed_in(root::directory(descriptors::FOLDER.as_ref())?);
    namespaces::leave().context("cannot have namespaces of its own")?;
    root::enter(Root::Empty)?;
    rights::give_up(identity)?;
    // Rather now than at the first write of a guest.
    for listener in listeners {
        let checked = listener.check();
        checked.with_context(|| format!("as {identity:?}, for {}", listener.path().display()))?;
    }
    Ok(())
}

/// What serving an image takes, on any thread: they come and go, and all do the same.
fn serving() -> Vec<Allowed> {
    let mut calls = vec![
        // A front end connects; its session has an epoll set for each queue.
        call(libc::SYS_accept4),
        call(libc::SYS_epoll_create1),
        call(libc::SYS_epoll_ctl),
        call(libc::SYS_epoll_wait),
        call(libc::SYS_epoll_pwait),
        call(libc::SYS_epoll_pwait2),
        // vhost-user's messages, and what comes with them.
        call(libc::SYS_recvmsg),
        call(libc::SYS_sendmsg),
        call(libc::SYS_recvfrom),
        only(libc::SYS_sendto, &[Test::Null(4)]),
        only(libc::SYS_ioctl, &[Test::Is(1, FIONBIO)]),
        call(libc::SYS_shutdown),
        call(libc::SYS_close),
        // Shared memory is examined before it is mapped, and doorbells are looked at.
        call(libc::SYS_fstat),
        call(libc::SYS_statx),
        call(libc::SYS_fstatfs),
        call(libc::SYS_readlinkat),
        one_of(
            libc::SYS_fcntl,
            1,
            &[
                libc::F_GET_SEALS,
                libc::F_DUPFD_CLOEXEC,
                libc::F_GETFD,
                libc::F_SETFD,
                libc::F_GETFL,
                libc::F_SETFL,
            ]
            .map(number),
        ),
        // Reading, from the page cache into a guest's window.
        call(libc::SYS_preadv2),
        call(libc::SYS_preadv),
        call(libc::SYS_pread64),
        call(libc::SYS_fadvise64),
        // Doorbells, interrupts, the log, events, the lifeline, the signals' pipe.
        call(libc::SYS_read),
        call(libc::SYS_write),
        call(libc::SYS_writev),
        // Memory, never to be executed.
        call(libc::SYS_brk),
        only(libc::SYS_mmap, &[Test::Without(2, number(libc::PROT_EXEC))]),
        only(
            libc::SYS_mprotect,
            &[Test::Without(2, number(libc::PROT_EXEC))],
        ),
        call(libc::SYS_munmap),
        call(libc::SYS_mremap),
        call(libc::SYS_madvise),
        // Locks, pauses, time.
        call(libc::SYS_futex),
        call(libc::SYS_sched_yield),
        call(libc::SYS_nanosleep),
        call(libc::SYS_clock_nanosleep),
        call(libc::SYS_clock_gettime),
        call(libc::SYS_restart_syscall),
        // The seed of a hash table.
        call(libc::SYS_getrandom),
        // The start and the end of a thread.
        call(libc::SYS_rseq),
        call(libc::SYS_set_robust_list),
        call(libc::SYS_sched_getaffinity),
        only(libc::SYS_prctl, &[Test::Is(0, number(libc::PR_SET_NAME))]),
        call(libc::SYS_sigaltstack),
        call(libc::SYS_exit),
        // Signals: the way back from a handler, and what a thread's start and end do to them.
        call(libc::SYS_rt_sigreturn),
        call(libc::SYS_rt_sigprocmask),
        call(libc::SYS_rt_sigaction),
        // An abort.
        call(libc::SYS_getpid),
        call(libc::SYS_gettid),
        only(libc::SYS_tgkill, &[Test::Is(2, number(libc::SIGABRT))]),
        // The end: socket files go, where they can be seen.
        call(libc::SYS_unlink),
        call(libc::SYS_exit_group),
    ];
    calls.extend(start_of_a_thread());
    calls
}

/// What scratch layers take besides.
fn writing() -> Vec<Allowed> {
    vec![
        // Where files cannot be made without a name, that goes at once.
        call(libc::SYS_unlinkat),
        call(libc::SYS_ftruncate),
        // Writing, from a guest's window.
        call(libc::SYS_pwritev2),
        call(libc::SYS_pwritev),
        call(libc::SYS_pwrite64),
        // Discard, write-zeroes, flush.
        call(libc::SYS_fallocate),
        call(libc::SYS_fdatasync),
    ]
}

/// What it takes to keep a layer.
fn keeping() -> Vec<Allowed> {
    vec![
        // What the layer lacks comes from the template: where there is data, and that.
        call(libc::SYS_lseek),
        call(libc::SYS_copy_file_range),
        // It reaches the medium, then its name, and the directory with it.
        call(libc::SYS_fsync),
        call(libc::SYS_linkat),
        one_of(
            libc::SYS_openat,
            2,
            &[(OFlags::RDONLY | OFlags::CLOEXEC).bits()],
        ),
    ]
}

/// asm-generic/ioctls.h.
const FIONBIO: u32 = 0x5421;

fn number(flag: libc::c_int) -> u32 {
    u32::try_from(flag).expect("flags are not negative")
}
