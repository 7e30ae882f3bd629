//! Every program of the sandbox stands still, and goes on later: cgroup-v2.rst, `cgroup.freeze`.
//!
//! What must hold: between [`Cgroups::freeze`] and [`Cgroups::thaw`] no program of the sandbox executes an
//! instruction. As PID 1 that is the whole tree, also cgroups that programs made themselves; whoever sits in
//! the root, which cannot be frozen, is reported. An agent that is an ordinary process has its own leaves only.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Dir, FileType, Mode, OFlags, openat};
use rustix::io::{Errno, pread, write};
use rustix::process::getpid;

use super::{Cgroups, DIRECTORY};

/// How often the tree is looked through for cgroups that were made meanwhile.
const PASSES: usize = 16;

/// `PF_KTHREAD`, in field 9 of proc_pid_stat(5): a thread of the kernel.
const KERNEL_THREAD: u64 = 0x0020_0000;

/// Why not every program could be frozen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FreezeError {
    #[error("the guest has no cgroup v2 tree, without which programs cannot be frozen")]
    NoTree,
    #[error("cannot use cgroup {name}")]
    Cgroup {
        name: String,
        #[source]
        error: io::Error,
    },
    #[error("cgroup {name} did not freeze in time: one of its processes waits for a device")]
    Late { name: String },
    #[error("programs make new cgroups faster than they can be frozen")]
    Restless,
    #[error("process {pid} ({command}) is in the root cgroup, which cannot be frozen")]
    Stray { pid: i32, command: String },
}

impl Cgroups {
    /// Whether [`Self::freeze`] has been called and [`Self::thaw`] not since.
    pub(crate) fn is_frozen(&self) -> bool {
        self.frozen.is_some()
    }

    /// Freezes every program, waiting for it until `deadline`. After an error they run.
    pub(crate) fn freeze(&mut self, deadline: Instant) -> Result<(), FreezeError> {
        if self.is_frozen() {
            return Ok(());
        }
        let root = self.root.as_ref().ok_or(FreezeError::NoTree)?;
        let mut frozen = Vec::new();
        let result = freeze_all(root, &mut frozen, deadline);
        self.frozen = Some(frozen);
        if result.is_err() {
            self.thaw()?;
        }
        result
    }

    /// Lets what [`Self::freeze`] froze go on.
    pub(crate) fn thaw(&mut self) -> Result<(), FreezeError> {
        let (Some(root), Some(frozen)) = (&self.root, &mut self.frozen) else {
            return Ok(());
        };
        while let Some(name) = frozen.last() {
            match set(root, name, b"0") {
                // One that has gone meanwhile holds nobody.
                Ok(()) | Err(Errno::NOENT | Errno::NODEV) => frozen.pop(),
                Err(error) => return Err(failed(name)(error)),
            };
        }
        self.frozen = None;
        Ok(())
    }
}

fn freeze_all(
    root: &OwnedFd,
    frozen: &mut Vec<String>,
    deadline: Instant,
) -> Result<(), FreezeError> {
    let whole = getpid().is_init();
    let mut seen = Vec::new();
    for _ in 0..PASSES {
        let new: Vec<String> = children(root)
            .map_err(failed("/"))?
            .into_iter()
            .filter(|name| whole || name.starts_with(&Cgroups::prefix()))
            .filter(|name| !seen.contains(name))
            .collect();
        if new.is_empty() {
            return if whole { no_strays(root) } else { Ok(()) };
        }
        for name in &new {
            match begin(root, name) {
                Ok(true) => frozen.push(name.clone()),
                // Frozen by a program, and that program's to thaw.
                Ok(false) | Err(Errno::NOENT | Errno::NODEV) => {}
                Err(error) => return Err(failed(name)(error)),
            }
        }
        for name in &new {
            wait(root, name, deadline)?;
        }
        seen.extend(new);
    }
    Err(FreezeError::Restless)
}

/// Asks for a cgroup's freezing. False if that had been asked for before.
fn begin(root: &OwnedFd, name: &str) -> Result<bool, Errno> {
    let file = open(root, name, "cgroup.freeze", OFlags::RDONLY)?;
    if read(&file)?.starts_with('1') {
        return Ok(false);
    }
    set(root, name, b"1")?;
    Ok(true)
}

fn set(root: &OwnedFd, name: &str, value: &[u8]) -> Result<(), Errno> {
    let file = open(root, name, "cgroup.freeze", OFlags::WRONLY)?;
    write(file, value).map(drop)
}

/// Waits until nobody in the cgroup runs. The kernel notifies who polls `cgroup.events`.
fn wait(root: &OwnedFd, name: &str, deadline: Instant) -> Result<(), FreezeError> {
    let file = match open(root, name, "cgroup.events", OFlags::RDONLY) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(failed(name)(error)),
    };
    loop {
        match read(&file) {
            Ok(events) if events.lines().any(|line| line == "frozen 1") => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::NODEV) => return Ok(()),
            Err(error) => return Err(failed(name)(error)),
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left == Duration::ZERO {
            return Err(FreezeError::Late {
                name: name.to_owned(),
            });
        }
        let mut watched = [PollFd::new(&file, PollFlags::PRI)];
        match poll(&mut watched, left.try_into().ok().as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(failed(name)(error)),
        }
    }
}

/// The root holds the agent and the kernel's threads, and nobody else.
fn no_strays(root: &OwnedFd) -> Result<(), FreezeError> {
    let file = open(root, ".", "cgroup.procs", OFlags::RDONLY).map_err(failed("/"))?;
    let processes = read(&file).map_err(failed("/"))?;
    for pid in processes.lines().filter_map(|line| line.parse().ok()) {
        if pid == getpid().as_raw_nonzero().get() {
            continue;
        }
        // One that has ended meanwhile is no concern.
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
            continue;
        };
        if let Some(command) = program(&stat) {
            return Err(FreezeError::Stray {
                pid,
                command: command.to_owned(),
            });
        }
    }
    Ok(())
}

/// The name of the program that a line of proc_pid_stat(5) is about; `None` for a thread of the kernel.
fn program(stat: &str) -> Option<&str> {
    let (head, tail) = stat.rsplit_once(") ")?;
    let flags = tail.split_ascii_whitespace().nth(6)?;
    let flags: u64 = flags.parse().ok()?;
    if flags & KERNEL_THREAD != 0 {
        return None;
    }
    head.split_once('(').map(|(_, command)| command)
}

fn children(root: &OwnedFd) -> Result<Vec<String>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(root)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy();
        if entry.file_type() == FileType::Directory && name != "." && name != ".." {
            names.push(name.into_owned());
        }
    }
    Ok(names)
}

fn open(root: &OwnedFd, name: &str, file: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let cgroup = openat(root, name, DIRECTORY, Mode::empty())?;
    openat(cgroup, file, flags | OFlags::CLOEXEC, Mode::empty())
}

/// The whole of one of the kernel's small files, from its beginning.
fn read(file: &impl AsFd) -> Result<String, Errno> {
    let mut text = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let count = pread(file, &mut chunk, text.len() as u64)?;
        if count == 0 {
            return Ok(String::from_utf8_lossy(&text).into_owned());
        }
        text.extend_from_slice(chunk.get(..count).unwrap_or_default());
    }
}

fn failed(name: &str) -> impl Fn(Errno) -> FreezeError {
    move |error| FreezeError::Cgroup {
        name: name.to_owned(),
        error: error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_from_the_kernel_s_threads() {
        let rest = "S 1 1 1 0 -1 4194560 100 0";
        assert_eq!(program(&format!("7 (a b) c) {rest}")), Some("a b) c"));
        assert_eq!(program("2 (kthreadd) S 0 0 0 0 -1 2129984 0 0"), None);
        assert_eq!(program("nonsense"), None);
        let own = std::fs::read_to_string("/proc/self/stat").unwrap();
        assert!(program(&own).is_some(), "{own}");
    }

    #[test]
    fn without_a_tree_nothing_can_be_frozen() {
        let mut cgroups = Cgroups::open(None);
        let error = cgroups.freeze(Instant::now()).unwrap_err();
        assert!(matches!(error, FreezeError::NoTree));
        assert!(!cgroups.is_frozen());
    }
}
