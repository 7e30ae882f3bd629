//! The whole host: processor time and memory, and what machine it is.

use std::fs;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::process::{field, from_ticks};
use crate::doctor::{self, Kvm};

/// Processor time at one moment.
///
/// What is told of the time that was used is counted in ticks, some of which a busy virtual host loses; idle
/// time is measured. So what was used is what there was, without what nobody used.
#[derive(Clone, Copy, Debug)]
pub(super) struct CpuClock {
    at: Instant,
    processors: u32,
    unused: Duration,
}

impl CpuClock {
    pub(super) fn now() -> Self {
        let text = fs::read_to_string("/proc/stat").unwrap_or_default();
        let (processors, ticks) = parse_unused(&text).unwrap_or((0, 0));
        Self {
            at: Instant::now(),
            processors,
            unused: from_ticks(ticks, rustix::param::clock_ticks_per_second()),
        }
    }

    /// All processors together.
    pub(super) fn busy_since(self, earlier: Self) -> Duration {
        let there_was = self.at.saturating_duration_since(earlier.at) * self.processors;
        there_was.saturating_sub(self.unused.saturating_sub(earlier.unused))
    }
}

/// How many processors there are, and ticks that nobody used: idle, waiting for a disk, or given to another
/// virtual machine.
fn parse_unused(text: &str) -> Option<(u32, u64)> {
    let mut lines = text.lines().filter(|line| line.starts_with("cpu"));
    let all = lines.next()?;
    let fields: Vec<u64> = all
        .split_whitespace()
        .skip(1)
        .map_while(|it| it.parse().ok())
        .collect();
    let [
        _user,
        _nice,
        _system,
        idle,
        waiting,
        _irq,
        _softirq,
        stolen,
        ..,
    ] = *fields
    else {
        return None;
    };
    Some((lines.count().try_into().ok()?, idle + waiting + stolen))
}

/// What the kernel says of the host's memory, KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct HostMemory {
    pub(super) available_kib: u64,
    pub(super) page_tables_kib: u64,
    /// Second-level page tables of virtual machines; 0 where the kernel does not tell them apart.
    pub(super) secondary_page_tables_kib: u64,
    pub(super) slab_kib: u64,
}

impl HostMemory {
    pub(super) fn now() -> Self {
        Self::parse(&meminfo())
    }

    fn parse(text: &str) -> Self {
        let kib = |name| field(text, name).unwrap_or(0);
        Self {
            available_kib: kib("MemAvailable:"),
            page_tables_kib: kib("PageTables:"),
            secondary_page_tables_kib: kib("SecPageTables:"),
            slab_kib: kib("Slab:"),
        }
    }
}

fn meminfo() -> String {
    fs::read_to_string("/proc/meminfo").unwrap_or_default()
}

/// All memory of the host, KiB.
pub(super) fn total_kib() -> u64 {
    field(&meminfo(), "MemTotal:").unwrap_or(0)
}

/// The machine that the figures are of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostDescription {
    pub cpu: String,
    pub logical_cpus: usize,
    pub memory_kib: u64,
    /// Release and version of the kernel.
    pub kernel: String,
    pub kvm: Kvm,
    /// What a round of `rundlet doctor`'s guest loop took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kvm_loop_ns: Option<f64>,
    /// `always`, `madvise` or `never`; absent where the kernel has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub huge_pages: Option<String>,
}

/// Takes the 50 ms of doctor's guest loop.
pub(super) fn describe() -> HostDescription {
    let uname = rustix::system::uname();
    let report = doctor::examine();
    let huge = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    let huge = huge.unwrap_or_default();
    HostDescription {
        cpu: cpu_model(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
        logical_cpus: std::thread::available_parallelism().map_or(1, Into::into),
        memory_kib: total_kib(),
        kernel: format!(
            "{} {}",
            uname.release().to_string_lossy(),
            uname.version().to_string_lossy()
        ),
        kvm: report.kvm,
        kvm_loop_ns: report.kvm_loop_ns,
        huge_pages: huge.split(['[', ']']).nth(1).map(str::to_owned),
    }
}

fn cpu_model(cpuinfo: &str) -> String {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"));
    let name = line.and_then(|line| line.split_once(':'));
    name.map_or("unknown", |(_, name)| name.trim()).to_owned()
}

/// One look at how busy the host is.
const LOOK: Duration = Duration::from_millis(100);

/// Quiet: all processors together used less than this part of one.
const QUIET: f64 = 0.15;

/// Waits until the host is done with what came before, at most for `limit`; whether it became quiet.
pub(super) fn settle(limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        let (before, began) = (CpuClock::now(), Instant::now());
        std::thread::sleep(LOOK);
        let busy = CpuClock::now().busy_since(before);
        if busy.as_secs_f64() < began.elapsed().as_secs_f64() * QUIET {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unused_is_idle_waiting_and_stolen() {
        let text =
            "cpu  100 20 30 5000 400 6 7 1000 90 9\ncpu0 1 1 1 1 1 1 1 1 1 1\ncpu1 1 1\nintr 5\n";
        assert_eq!(parse_unused(text), Some((2, 6400)));
        assert_eq!(parse_unused("cpu  1 2 3\n"), None);
        assert_eq!(parse_unused(""), None);
    }

    #[test]
    fn memory_is_read_by_name_and_old_kernels_know_less() {
        let text = "MemTotal: 9 kB\nMemAvailable: 100 kB\nSlab: 30 kB\nPageTables: 4 kB\nSecPageTables: 2 kB\n";
        assert_eq!(
            HostMemory::parse(text),
            HostMemory {
                available_kib: 100,
                page_tables_kib: 4,
                secondary_page_tables_kib: 2,
                slab_kib: 30,
            }
        );
        let old = HostMemory::parse("MemAvailable: 1 kB\nPageTables: 4 kB\n");
        assert_eq!(old.secondary_page_tables_kib, 0);
    }

    #[test]
    fn this_machine_is_described() {
        let host = describe();
        assert!(host.logical_cpus > 0 && host.memory_kib > 0);
        assert!(host.kernel.contains('.'));
        assert_eq!(
            cpu_model("processor: 0\nmodel name\t: A CPU @ 1\n"),
            "A CPU @ 1"
        );
        assert_eq!(cpu_model(""), "unknown");
    }

    #[test]
    fn busy_is_what_there_was_without_what_nobody_used() {
        let clock = |ms, unused| CpuClock {
            at: Instant::now() + Duration::from_millis(ms),
            processors: 2,
            unused: Duration::from_millis(unused),
        };
        let (before, after) = (clock(0, 5000), clock(1000, 6500));
        let busy = after.busy_since(before).as_millis();
        assert!((500..510).contains(&busy), "{busy}");
        // Ticks are coarse: more may be idle than there was.
        assert_eq!(clock(0, 6000).busy_since(before), Duration::ZERO);
        assert!(CpuClock::now().processors > 0);
    }
}
