//! System calls for each kind of thread, each with its reason.
//!
//! | kind | what it does |
//! |---|---|
//! | vCPU | KVM_RUN; pages mapped ahead; devices that the guest touches: console, activation and reset of virtio devices, messages to a disk's backend |
//! | main | the event loop: vsock, entropy, watching backends, lifeline, the end |
//!
//! With the duty to be captured (a control socket) the vCPUs also tell their state, and the main thread writes
//! files and starts a thread. There are no other threads: those that talk to backends at the start are gone
//! before the filters come.

use std::mem::size_of;

use kvm_bindings::{
    kvm_clock_data, kvm_cpuid2, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state,
    kvm_msr_list, kvm_msrs, kvm_pit_state2, kvm_pre_fault_memory, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use rundlet_jail::filter::{Allowed, Test, absent, call, one_of, only, start_of_a_thread};
use vmm_sys_util::signal::SIGRTMIN;

/// What a sandbox may be asked for while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// Nothing.
    Run,
    /// Pause, and to be captured as a template: it has a control socket.
    Capture,
}

/// For the thread of a vCPU.
#[must_use]
pub fn vcpu(duty: Duty) -> Vec<Allowed> {
    let mut calls = every_thread();
    calls.extend([
        no_files(),
        // The guest, and pages that its first command touches. Nothing else is asked of KVM.
        one_of(
            libc::SYS_ioctl,
            1,
            &[
                io(0x80),                           // KVM_RUN
                both::<kvm_pre_fault_memory>(0xd5), // KVM_PRE_FAULT_MEMORY
            ],
        ),
        // A vCPU that was told to finish ends its thread.
        call(libc::SYS_exit),
    ]);
    if duty == Duty::Capture {
        calls.push(one_of(libc::SYS_ioctl, 1, &vcpu_state()));
    }
    calls
}

/// For the main thread.
#[must_use]
pub fn main(duty: Duty) -> Vec<Allowed> {
    let mut calls = every_thread();
    calls.extend([
        // The event loop, and that of vsock's connections inside of it.
        call(libc::SYS_epoll_wait),
        call(libc::SYS_epoll_pwait),
        call(libc::SYS_epoll_pwait2),
        // vsock: a program of the host that dials in, non-blocking.
        call(libc::SYS_accept4),
        only(libc::SYS_ioctl, &[Test::Is(1, FIONBIO)]),
        // vsock: the guest dials `<socket>_<port>`. Only unix sockets; what can be reached is what is
        // in the sandbox's directory.
        only(
            libc::SYS_socket,
            &[Test::Is(0, number(libc::AF_UNIX)), Test::Is(2, 0)],
        ),
        call(libc::SYS_connect),
        // vsock: a program that dials in says where to, and its line is looked at before it is taken.
        call(libc::SYS_recvfrom),
        call(libc::SYS_getsockopt),
        // Kicking a vCPU out of the guest.
        only(libc::SYS_tgkill, &[Test::Is(2, kick())]),
        // The socket goes with its sandbox, if it is still the same.
        call(libc::SYS_statx),
        call(libc::SYS_lstat),
        call(libc::SYS_newfstatat),
        call(libc::SYS_unlink),
        // The end.
        call(libc::SYS_exit_group),
    ]);
    match duty {
        Duty::Run => calls.push(no_files()),
        Duty::Capture => calls.extend(capture()),
    }
    calls
}

/// An allocator that is asked by many threads counts the processors, in files; without, it asks once more, and
/// makes do.
fn no_files() -> Allowed {
    absent(libc::SYS_openat)
}

/// What any thread of a sandbox needs.
fn every_thread() -> Vec<Allowed> {
    vec![
        // Doorbells, timers, signals' pipe, streams, log, console, events, eventfds.
        call(libc::SYS_read),
        call(libc::SYS_write),
        call(libc::SYS_readv),
        call(libc::SYS_writev),
        // Streams without a signal when the other side is gone. Connected ones only.
        only(libc::SYS_sendto, &[Test::Null(4)]),
        // vhost-user: memory, doorbells and interrupts go to a disk's backend as descriptors.
        call(libc::SYS_sendmsg),
        call(libc::SYS_recvmsg),
        // A connection ends, also one with a backend that does not answer.
        call(libc::SYS_shutdown),
        call(libc::SYS_close),
        // A device that is activated or reset is watched, or no more.
        call(libc::SYS_epoll_ctl),
        // The deadline of a conversation with a backend, and of vsock's connections.
        call(libc::SYS_timerfd_settime),
        // A second handle on a descriptor of our own, and the flags of one.
        one_of(
            libc::SYS_fcntl,
            1,
            &[
                libc::F_DUPFD_CLOEXEC,
                libc::F_GETFD,
                libc::F_GETFL,
                libc::F_SETFL,
            ]
            .map(number),
        ),
        // The entropy device, and the seed of a hash table.
        call(libc::SYS_getrandom),
        // Locks and channels.
        call(libc::SYS_futex),
        call(libc::SYS_sched_yield),
        // Time, where the kernel gives it by system call only.
        call(libc::SYS_clock_gettime),
        call(libc::SYS_clock_nanosleep),
        // A wait goes on that was interrupted for nothing: by a command of the main thread, or a signal that another
        // thread has taken.
        call(libc::SYS_restart_syscall),
        // How many processors there are, for the allocator.
        call(libc::SYS_sched_getaffinity),
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
        // Signals: the way back from a handler, and what a thread's end or an abort does to them.
        call(libc::SYS_rt_sigreturn),
        call(libc::SYS_rt_sigprocmask),
        call(libc::SYS_rt_sigaction),
        call(libc::SYS_sigaltstack),
        // An abort.
        call(libc::SYS_getpid),
        call(libc::SYS_gettid),
        only(libc::SYS_tgkill, &[Test::Is(2, number(libc::SIGABRT))]),
    ]
}

/// What else the main thread of a sandbox with a control socket does.
fn capture() -> Vec<Allowed> {
    let mut calls = vec![
        // Which pages a trial has touched.
        call(libc::SYS_mincore),
        // The files of the template, and the identity of this program.
        call(libc::SYS_openat),
        call(libc::SYS_fstat),
        call(libc::SYS_lseek),
        call(libc::SYS_pread64),
        call(libc::SYS_pwrite64),
        call(libc::SYS_ftruncate),
        call(libc::SYS_fallocate),
        call(libc::SYS_fsync),
        call(libc::SYS_fdatasync),
        // The state of the machine.
        one_of(
            libc::SYS_ioctl,
            1,
            &[
                io(0x03),                    // KVM_CHECK_EXTENSION
                both::<kvm_msr_list>(0x02),  // KVM_GET_MSR_INDEX_LIST
                both::<kvm_cpuid2>(0x05),    // KVM_GET_SUPPORTED_CPUID
                both::<kvm_irqchip>(0x62),   // KVM_GET_IRQCHIP
                get::<kvm_pit_state2>(0x9f), // KVM_GET_PIT2
            ],
        ),
        // The chaperone: a thread of this thread's kind, its start and its end.
        call(libc::SYS_rseq),
        call(libc::SYS_set_robust_list),
        only(libc::SYS_prctl, &[Test::Is(0, number(libc::PR_SET_NAME))]),
        call(libc::SYS_exit),
    ];
    calls.extend(start_of_a_thread());
    calls
}

/// KVM's calls that read a vCPU, and the clock with it.
fn vcpu_state() -> [u32; 13] {
    [
        get::<kvm_mp_state>(0x98),    // KVM_GET_MP_STATE
        get::<kvm_regs>(0x81),        // KVM_GET_REGS
        get::<kvm_sregs>(0x83),       // KVM_GET_SREGS
        get::<kvm_xsave>(0xa4),       // KVM_GET_XSAVE
        get::<kvm_xcrs>(0xa6),        // KVM_GET_XCRS
        get::<kvm_debugregs>(0xa1),   // KVM_GET_DEBUGREGS
        get::<kvm_lapic_state>(0x8e), // KVM_GET_LAPIC
        both::<kvm_msrs>(0x88),       // KVM_GET_MSRS
        io(0xa3),                     // KVM_GET_TSC_KHZ
        both::<kvm_cpuid2>(0x91),     // KVM_GET_CPUID2
        get::<kvm_vcpu_events>(0x9f), // KVM_GET_VCPU_EVENTS
        get::<kvm_clock_data>(0x7c),  // KVM_GET_CLOCK
        io(0xad),                     // KVM_KVMCLOCK_CTRL, after a pause
    ]
}

/// asm-generic/ioctls.h.
const FIONBIO: u32 = 0x5421;

/// _IO(KVMIO, nr) of linux/kvm.h.
const fn io(nr: u32) -> u32 {
    0xae00 | nr
}

/// _IOR(KVMIO, nr, T).
fn get<T>(nr: u32) -> u32 {
    2 << 30 | size::<T>() << 16 | io(nr)
}

/// _IOWR(KVMIO, nr, T).
fn both<T>(nr: u32) -> u32 {
    3 << 30 | size::<T>() << 16 | io(nr)
}

fn size<T>() -> u32 {
    u32::try_from(size_of::<T>()).expect("KVM's structures are small")
}

fn kick() -> u32 {
    number(SIGRTMIN())
}

fn number(flag: libc::c_int) -> u32 {
    u32::try_from(flag).expect("flags are not negative")
}
