//! The host's kernel and its settings.

use std::fs;
use std::path::Path;

use super::Check;
use crate::pool::{self, Support};

const CGROUPS: &str = "/sys/fs/cgroup";

/// Oldest kernel that is tested: pidfd, openat2, clone3 into a cgroup are all there.
const OLDEST: (u32, u32) = (5, 10);

pub(super) fn examine() -> Vec<Check> {
    vec![kernel(), cgroup2(), memory(), overcommit(), huge_pages()]
}

fn kernel() -> Check {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    let version = match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor),
        _ => (0, 0),
    };
    if version < OLDEST {
        let advice = format!("use Linux {}.{} or later", OLDEST.0, OLDEST.1);
        return Check::fail("kernel", release, advice);
    }
    Check::ok("kernel", release)
}

/// What the daemon needs; `run` and `fleet` do without.
fn cgroup2() -> Check {
    let name = "cgroup2";
    match pool::support(Path::new(CGROUPS)) {
        Support::NotVersion2 => Check::warn(
            name,
            format!("no unified hierarchy on {CGROUPS}"),
            "boot with systemd.unified_cgroup_hierarchy=1: `rundlet serve` refuses to start; `run` goes without limits of the host's",
        ),
        Support::Missing(controller) => Check::warn(
            name,
            format!("no controller {controller}"),
            format!(
                "boot without cgroup_disable={controller}, or have it delegated to this container: `rundlet serve` refuses to start"
            ),
        ),
        Support::Full => Check::ok(name, "cpu, memory and pids can be limited"),
    }
}

fn memory() -> Check {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let mib = field(&meminfo, "MemAvailable:").unwrap_or(0) / 1024;
    let found = format!("{mib} MiB available");
    if mib < 256 {
        return Check::warn(
            "memory",
            found,
            "free some: a sandbox takes up to its --memory",
        );
    }
    Check::ok("memory", found)
}

/// The number behind a name in a file like meminfo.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn overcommit() -> Check {
    let path = "/proc/sys/vm/overcommit_memory";
    let policy = fs::read_to_string(path).unwrap_or_default();
    if policy.trim() == "2" {
        return Check::warn(
            "overcommit",
            "never (vm.overcommit_memory=2)",
            "`sysctl vm.overcommit_memory=1`: otherwise each sandbox counts with its whole memory",
        );
    }
    Check::ok(
        "overcommit",
        format!("vm.overcommit_memory={}", policy.trim()),
    )
}

fn huge_pages() -> Check {
    let path = "/sys/kernel/mm/transparent_hugepage/enabled";
    let setting = fs::read_to_string(path).unwrap_or_default();
    match setting.split(['[', ']']).nth(1) {
        Some("always") => Check::warn(
            "huge pages",
            "always",
            format!(
                "`echo madvise > {path}`: an idle guest touches little, and 2 MiB pages multiply it"
            ),
        ),
        Some(other) => Check::ok("huge pages", other),
        None => Check::ok("huge pages", "none"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read_by_name() {
        let text = "MemTotal: 10 kB\nMemAvailable:   2048 kB\n";
        assert_eq!(field(text, "MemAvailable:"), Some(2048));
        assert_eq!(field(text, "Nothing:"), None);
    }
}
