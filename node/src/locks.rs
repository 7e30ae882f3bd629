//! Who holds a file or directory of the store: those that use an image or a template hold it locked
//! shared, flock(2).

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

/// The processes that hold `path` locked, `None` when nobody does.
pub(crate) fn users(path: &Path) -> Option<Vec<u32>> {
    let file = File::open(path).ok()?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
        return None;
    }
    let inode = file.metadata().map_or(0, |metadata| metadata.ino());
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    Some(holders(&locks, inode))
}

/// Reads proc_locks(5): `1: FLOCK  ADVISORY  READ 345 fe:00:921 0 EOF`. The device is not compared: on
/// btrfs and overlayfs it is another than stat(2) says.
fn holders(locks: &str, inode: u64) -> Vec<u32> {
    let mut pids: Vec<u32> = locks
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace().skip(1);
            (fields.next()? == "FLOCK").then_some(())?;
            let pid = fields.nth(2)?;
            let place = fields.next()?;
            (place.rsplit(':').next()? == inode.to_string()).then_some(())?;
            pid.parse().ok()
        })
        .collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

/// Names the processes in an error.
pub(crate) fn by(pids: &[u32]) -> String {
    match pids {
        [] => String::new(),
        [pid] => format!(" by process {pid}"),
        many => format!(" by processes {many:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_are_read_from_the_kernel_s_list() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 fe:00:77 0 EOF\n\
                     2: FLOCK  ADVISORY  READ 22 fe:00:77 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 33 fe:00:77 0 EOF\n\
                     3: FLOCK  ADVISORY  READ 44 fe:00:777 0 EOF\n";
        assert_eq!(holders(locks, 77), [22]);
    }
}
