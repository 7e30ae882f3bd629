//! What a process in a jail tries, and cannot; and the same process without one, which can.
//!
//! Every probe is this program, started anew with the name of the attempt. Needs root: without, the tests say
//! by name that they are skipped.

use std::fs::{self, File};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use rundlet_jail::filter::{Filter, absent, call};
use rundlet_jail::namespaces;
use rundlet_jail::rights::{self, Identity};
use rundlet_jail::root::{self, Root};

/// Exit codes of a probe.
const DONE: u8 = 10;
const FAILED: u8 = 11;

/// An attempt; its argument is the id of a neighbour.
type Attempt = fn(i32) -> io::Result<()>;

const ATTEMPTS: &[(&str, Attempt)] = &[
    ("open_a_file", open_a_file),
    ("make_a_file_outside", make_a_file_outside),
    ("reach_the_old_root", reach_the_old_root),
    ("connect_to_a_socket_of_the_host", connect_to_the_host),
    ("trace_a_neighbour", trace),
    ("read_the_memory_of_a_neighbour", read_memory),
    ("signal_a_neighbour", signal),
    ("mount", mount),
    ("execute", execute),
    ("become_root", become_root),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--probe", jail, name, neighbour, root] => probe(
            jail == "jail",
            name,
            neighbour.parse().unwrap_or(0),
            Path::new(root),
        ),
        ["--filter", name] => filtered(name),
        _ => run(),
    }
}

fn run() -> ExitCode {
    if !rustix::process::geteuid().is_root() {
        for (name, _) in ATTEMPTS {
            eprintln!("skipped: {name}: needs root");
        }
        return filters();
    }
    let name = format!("rundlet-walls-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(name).expect("a name");
    let _listener = UnixListener::bind_addr(&address).expect("a socket of the host");
    let mut neighbour = Command::new("sleep").arg("600").spawn().expect("sleep");
    let mut failed = false;
    for (name, _) in ATTEMPTS {
        for (jail, expected) in [("free", DONE), ("jail", FAILED)] {
            let folder = tempfile::tempdir().expect("a folder");
            let status = this()
                .args(["--probe", jail, name, &neighbour.id().to_string()])
                .arg(folder.path())
                .status()
                .expect("a probe");
            let ok = status.code() == Some(expected.into());
            failed |= !ok;
            println!(
                "test {name} ({jail}) ... {}",
                if ok { "ok" } else { "FAILED" }
            );
            if !ok {
                println!("    {status}, expected {expected}");
            }
        }
    }
    let _ = neighbour.kill();
    let _ = neighbour.wait();
    if failed { ExitCode::FAILURE } else { filters() }
}

fn this() -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.stdin(Stdio::null());
    command
}

/// The filter needs no root.
fn filters() -> ExitCode {
    use std::os::unix::process::ExitStatusExt;
    let mut failed = false;
    for (name, signal, code) in [
        ("allowed", None, Some(i32::from(DONE))),
        ("absent", None, Some(i32::from(DONE))),
        ("forbidden", Some(libc::SIGSYS), None),
        ("forbidden_on_a_thread", Some(libc::SIGSYS), None),
    ] {
        let status = this().args(["--filter", name]).status().expect("a probe");
        let ok = (status.signal(), status.code()) == (signal, code);
        failed |= !ok;
        println!(
            "test filter: {name} ... {}",
            if ok { "ok" } else { "FAILED" }
        );
        if !ok {
            println!("    {status}");
        }
    }
    if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn probe(jail: bool, name: &str, neighbour: i32, root: &Path) -> ExitCode {
    let attempt = ATTEMPTS
        .iter()
        .find(|(known, _)| *known == name)
        .expect("an attempt")
        .1;
    if jail && let Err(error) = shut_in(root) {
        eprintln!("{error}");
        return ExitCode::from(12);
    }
    match attempt(neighbour) {
        Ok(()) => ExitCode::from(DONE),
        Err(error) => {
            println!("    {name}: {error}");
            ExitCode::from(FAILED)
        }
    }
}

/// All walls but the filter, so that each attempt meets the wall that is meant for it.
fn shut_in(root: &Path) -> Result<(), Box<dyn std::error::Error>> {
    namespaces::leave()?;
    root::enter(Root::Directory(root))?;
    rights::give_up(Identity::new(65_001, 65_001).ok_or("no identity")?)?;
    Ok(())
}

fn open_a_file(_: i32) -> io::Result<()> {
    File::open("/etc/passwd").map(drop)
}

fn make_a_file_outside(_: i32) -> io::Result<()> {
    let path = format!("/tmp/rundlet-walls-{}", std::process::id());
    fs::write(&path, "x")?;
    fs::remove_file(path)
}

fn reach_the_old_root(_: i32) -> io::Result<()> {
    fs::metadata("/../../../etc").map(drop)
}

/// By a name that is no file: what stands in the way is the network namespace alone.
fn connect_to_the_host(_: i32) -> io::Result<()> {
    let parent = rustix::process::getppid().map_or(0, rustix::process::Pid::as_raw_pid);
    let address = SocketAddr::from_abstract_name(format!("rundlet-walls-{parent}"))?;
    UnixStream::connect_addr(&address).map(drop)
}

fn trace(neighbour: i32) -> io::Result<()> {
    let pid = rustix::process::Pid::from_raw(neighbour);
    let pid = pid.ok_or(io::ErrorKind::InvalidInput)?;
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
    // The right to take its descriptors is the right to trace it.
    rustix::process::pidfd_getfd(pidfd, 1, rustix::process::PidfdGetfdFlags::empty())?;
    Ok(())
}

fn read_memory(neighbour: i32) -> io::Result<()> {
    File::open(format!("/proc/{neighbour}/mem")).map(drop)
}

fn signal(neighbour: i32) -> io::Result<()> {
    let pid = rustix::process::Pid::from_raw(neighbour);
    let pid = pid.ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::process::test_kill_process(pid)?)
}

fn mount(_: i32) -> io::Result<()> {
    use rustix::mount::{FsOpenFlags, fsopen};
    fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    Ok(())
}

fn execute(_: i32) -> io::Result<()> {
    Command::new("/bin/true").status().map(drop)
}

fn become_root(_: i32) -> io::Result<()> {
    rustix::thread::set_thread_uid(rustix::thread::Uid::ROOT)?;
    Ok(())
}

/// A process that may write, and be gone; the kernel does not know how to open.
fn filtered(name: &str) -> ExitCode {
    let mut calls = vec![absent(libc::SYS_openat)];
    let every_day = [
        libc::SYS_write,
        libc::SYS_exit_group,
        libc::SYS_munmap,
        libc::SYS_sigaltstack,
        libc::SYS_mmap,
        libc::SYS_mprotect,
        libc::SYS_futex,
        libc::SYS_rt_sigprocmask,
    ];
    calls.extend(every_day.map(call));
    let other = std::sync::Arc::new(std::sync::Barrier::new(2));
    let meet = std::sync::Arc::clone(&other);
    let filter = Filter::compile(calls).expect("a filter");
    let own = filter.clone();
    let thread = std::thread::spawn(move || {
        own.load().expect("a filter of its own");
        meet.wait();
        meet.wait();
        let _ = rustix::process::getppid();
    });
    other.wait();
    if name == "forbidden_on_a_thread" {
        other.wait();
        let _ = thread.join();
        return ExitCode::from(DONE);
    }
    filter.load().expect("a filter");
    let opened = File::open("/etc/passwd").map_err(|error| error.raw_os_error());
    match name {
        "absent" if !matches!(opened, Err(Some(libc::ENOSYS))) => return ExitCode::from(FAILED),
        "forbidden" => drop(rustix::process::getppid()),
        _ => {}
    }
    ExitCode::from(DONE)
}
