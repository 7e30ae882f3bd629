//! Programs of the distribution that we run.

use std::env;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

/// Where mkfs tools are when `PATH` is a plain user's.
const SYSTEM: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// Lines of a tool's words that an error repeats.
const LINES: usize = 4;

/// Looks a program up in `PATH` and the system's directories.
#[must_use]
pub fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(SYSTEM.map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|program| is_executable(program))
}

/// Whether it is a file that we may run.
#[must_use]
pub fn is_executable(path: &Path) -> bool {
    path.is_file() && access(path, Access::EXEC_OK).is_ok()
}

/// The end of what a tool wrote, in one line.
#[must_use]
pub fn last_lines(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let start = lines.len().saturating_sub(LINES);
    lines.get(start..).unwrap_or_default().join("; ")
}
