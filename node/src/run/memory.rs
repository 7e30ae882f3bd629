//! Memory of a sandbox's processes, from smaps (proc(5)).

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// Anonymous writable mappings of at least this size are guest RAM. Its smallest piece lies between the
/// I/O window (which may end at 16 MiB, and then there is none) and the kernel: 4 MiB under a window
/// of 4 MiB. The VMM's own heap and stacks (2 MiB) are smaller.
const GUEST_RAM_KIB: u64 = 4 * 1024;

/// The processes at one moment.
#[derive(Debug, Serialize)]
pub(super) struct Sample {
    at: &'static str,
    processes: Vec<Process>,
}

#[derive(Debug, Serialize)]
struct Process {
    name: &'static str,
    pid: u32,
    #[serde(flatten)]
    usage: Option<Usage>,
}

/// KiB; PSS counts a shared page by its share.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Usage {
    pss_kib: u64,
    rss_kib: u64,
    guest_pss_kib: u64,
    guest_rss_kib: u64,
    /// Without guest RAM: what the program itself costs.
    own_pss_kib: u64,
    own_rss_kib: u64,
}

#[derive(Serialize)]
struct Line<'a> {
    stats: &'a [Sample],
}

/// Reads both processes; one that is gone has no figures.
pub(super) fn sample(at: &'static str, vmm: u32, backend: u32, guest_files: &[PathBuf]) -> Sample {
    let real = |file: &PathBuf| file.canonicalize().unwrap_or_else(|_| file.clone());
    let guest_files: Vec<_> = guest_files.iter().map(real).collect();
    let process = |name, pid| Process {
        name,
        pid,
        usage: fs::read_to_string(format!("/proc/{pid}/smaps"))
            .ok()
            .map(|smaps| usage(&smaps, name == "rundlet-vmm", &guest_files)),
    };
    Sample {
        at,
        processes: vec![
            process("rundlet-vmm", vmm),
            process("vhost-blk-ro", backend),
        ],
    }
}

/// One line for all samples.
pub(super) fn json(samples: &[Sample]) -> String {
    serde_json::to_string(&Line { stats: samples }).unwrap_or_default()
}

fn usage(smaps: &str, is_vmm: bool, guest_files: &[PathBuf]) -> Usage {
    let mut sum = Usage::default();
    let mut guest = false;
    for line in smaps.lines() {
        let mut fields = line.split_whitespace();
        let first = fields.next().unwrap_or_default();
        let number = || {
            fields
                .clone()
                .next()
                .and_then(|it| it.parse().ok())
                .unwrap_or(0)
        };
        match first {
            "Pss:" => {
                let kib: u64 = number();
                sum.pss_kib += kib;
                sum.guest_pss_kib += if guest { kib } else { 0 };
            }
            "Rss:" => {
                let kib: u64 = number();
                sum.rss_kib += kib;
                sum.guest_rss_kib += if guest { kib } else { 0 };
            }
            range if !range.ends_with(':') => guest = is_vmm && is_guest_ram(line, guest_files),
            _ => {}
        }
    }
    sum.own_pss_kib = sum.pss_kib.saturating_sub(sum.guest_pss_kib);
    sum.own_rss_kib = sum.rss_kib.saturating_sub(sum.guest_rss_kib);
    sum
}

/// Reads a mapping's head line: `start-end perms offset dev inode path`.
fn is_guest_ram(line: &str, guest_files: &[PathBuf]) -> bool {
    let mut fields = line.split_whitespace();
    let (range, permissions) = (
        fields.next().unwrap_or_default(),
        fields.next().unwrap_or_default(),
    );
    let path = fields.skip(3).collect::<Vec<_>>().join(" ");
    let address = |text| u64::from_str_radix(text, 16).ok();
    let size = range.split_once('-').and_then(|(start, end)| {
        let bytes = address(end)?.checked_sub(address(start)?)?;
        Some(bytes / 1024)
    });
    let anonymous = path.is_empty() || path.starts_with("[anon:");
    let large = size.is_some_and(|kib| kib >= GUEST_RAM_KIB);
    // The I/O window is the VMM's only memfd; kernel and initrd are mapped from their files.
    path.starts_with("/memfd:")
        || guest_files.iter().any(|file| file == Path::new(&path))
        || (anonymous && large && permissions.starts_with("rw"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
7f0000000000-7f0000800000 rw-p 00000000 00:00 0 
Size:               8192 kB
Rss:                 100 kB
Pss:                  90 kB
7f0000800000-7f0000a00000 rw-s 00000000 00:01 5 /memfd:window (deleted)
Rss:                  10 kB
Pss:                   5 kB
7f0000a00000-7f0000c00000 rw-p 00000000 00:00 0 
Rss:                   4 kB
Pss:                   4 kB
7f0000d00000-7f0000f00000 rw-p 00200000 fe:00 7 /vmlinux
Rss:                  20 kB
Pss:                   7 kB
7f0000f00000-7f0000f40000 rw-p 00000000 fe:00 8 /boot/initrd.cpio
Rss:                  30 kB
Pss:                   3 kB
7f0001000000-7f0009000000 ---p 00000000 00:00 0 
Rss:                   0 kB
Pss:                   0 kB
7f0010000000-7f0010100000 r-xp 00000000 fe:00 9 /usr/bin/rundlet-vmm
Rss:                 600 kB
Pss:                 300 kB
SwapPss:               0 kB
";

    #[test]
    fn guest_ram_is_told_from_the_vmm_s_own() {
        let usage = usage(
            SMAPS,
            true,
            &["/vmlinux".into(), "/boot/initrd.cpio".into()],
        );
        assert_eq!((usage.rss_kib, usage.pss_kib), (764, 409));
        assert_eq!((usage.guest_rss_kib, usage.guest_pss_kib), (160, 105));
        assert_eq!((usage.own_rss_kib, usage.own_pss_kib), (604, 304));
    }

    #[test]
    fn a_backend_has_no_guest_ram() {
        let usage = usage(SMAPS, false, &["/vmlinux".into()]);
        assert_eq!(usage.guest_rss_kib, 0);
        assert_eq!(usage.own_rss_kib, 764);
    }

    #[test]
    fn our_own_process_can_be_read() {
        let pid = std::process::id();
        let sample = sample("now", pid, u32::MAX, &["/vmlinux".into()]);
        assert!(sample.processes[0].usage.as_ref().unwrap().rss_kib > 100);
        assert!(sample.processes[1].usage.is_none());
    }
}
