//! Programs, the guest's files, and the image store.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Access, access};

use super::Check;
use crate::error::chain;
use crate::image::Store;
use crate::{places, tools};

/// Below this much free space imports and scratch layers are likely to fail.
const LITTLE_MIB: u64 = 2 * 1024;

pub(super) fn examine() -> Vec<Check> {
    let mut checks = vec![
        tool("mkfs.erofs", "--version", "apt install erofs-utils"),
        tool("mkfs.ext4", "-V", "apt install e2fsprogs"),
        peer("rundlet-vmm"),
        peer("vhost-blk-ro"),
        // ELF magic; the "newc" format of cpio(5).
        guest_file("vmlinux", b"\x7fELF"),
        guest_file("initrd.cpio", b"070701"),
    ];
    checks.extend(store(&places::store()));
    checks
}

fn tool(name: &'static str, version: &str, advice: &str) -> Check {
    match tools::find(name) {
        Some(path) => Check::ok(
            name,
            said_version(&path, version).unwrap_or_else(|| "found".into()),
        ),
        None => Check::fail(name, "not installed", advice),
    }
}

/// The line of a tool's version text that has a number in it.
fn said_version(program: &Path, argument: &str) -> Option<String> {
    let output = Command::new(program)
        .arg(argument)
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    let digit = |line: &&str| line.contains(|c: char| c.is_ascii_digit());
    text.lines().find(digit).map(|line| line.trim().to_owned())
}

fn peer(name: &'static str) -> Check {
    match places::program(name) {
        Ok(path) => Check::ok(name, path.display().to_string()),
        Err(error) => Check::fail(
            name,
            "not found",
            format!("{error} (cargo build --release builds it)"),
        ),
    }
}

fn guest_file(name: &'static str, magic: &[u8]) -> Check {
    let path = match places::guest(name) {
        Ok(path) => path,
        Err(error) => return Check::fail(name, "not found", error.to_string()),
    };
    let found = path.display().to_string();
    let mut start = vec![0; magic.len()];
    match File::open(&path).and_then(|mut file| file.read_exact(&mut start)) {
        Ok(()) if start == magic => Check::ok(name, found),
        Ok(()) => Check::fail(
            name,
            found,
            "it is not what its name says; build it again (README)",
        ),
        Err(error) => Check::fail(name, found, format!("it cannot be read: {error}")),
    }
}

/// The store is not made here: a look should change nothing.
fn store(root: &Path) -> Vec<Check> {
    let place = existing(root);
    let found = root.display().to_string();
    if access(&place, Access::WRITE_OK).is_err() {
        return vec![Check::fail(
            "store",
            format!("{found}: {} is not writable", place.display()),
            format!(
                "run as its owner, or set {} to a directory of yours",
                places::STORE
            ),
        )];
    }
    let mut checks = vec![images(root, found)];
    if let Ok(stat) = rustix::fs::statvfs(&place) {
        let mib = stat.f_bavail.saturating_mul(stat.f_frsize) / (1024 * 1024);
        let found = format!("{mib} MiB free");
        checks.push(if mib < LITTLE_MIB {
            Check::warn(
                "store space",
                found,
                "free some: images and scratch layers live there",
            )
        } else {
            Check::ok("store space", found)
        });
    }
    checks
}

fn images(root: &Path, found: String) -> Check {
    if !root.exists() {
        return Check::ok("store", format!("{found} (made by the first import)"));
    }
    match Store::open(root).and_then(|store| store.list()) {
        Ok(images) => Check::ok("store", format!("{found}: {} images", images.len())),
        Err(error) => Check::fail("store", found, chain(&error)),
    }
}

/// The path, or the nearest directory above it that is there.
fn existing(path: &Path) -> PathBuf {
    let found = path.ancestors().find(|path| path.exists());
    found.unwrap_or_else(|| Path::new("/")).to_path_buf()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::doctor::Status;

    #[test]
    fn a_look_at_the_store_leaves_no_trace() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("not/yet");
        let checks = store(&root);
        assert_eq!(checks.len(), 2);
        assert!(checks.iter().all(|check| check.status != Status::Fail));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn tools_say_their_version() {
        let check = tool("mkfs.ext4", "-V", "");
        assert!(check.found.contains("1."), "{check:?}");
        let missing = tool("mkfs.none-of-that-name", "-V", "apt install it");
        assert_eq!(missing.status, Status::Fail);
    }
}
