//! What a process has cost, from its files in /proc (proc(5)).
//!
//! A process that has ended meanwhile has no figures; nothing here fails for it.

use std::fs;
use std::time::Duration;

/// Memory in KiB, from smaps_rollup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Memory {
    /// Each page by its share.
    pub(super) pss_kib: u64,
    /// Pages of nobody else.
    pub(super) uss_kib: u64,
    pub(super) rss_kib: u64,
}

impl Memory {
    pub(super) fn add(&mut self, other: Self) {
        self.pss_kib += other.pss_kib;
        self.uss_kib += other.uss_kib;
        self.rss_kib += other.rss_kib;
    }
}

/// Memory of a living process.
pub(super) fn memory(pid: u32) -> Option<Memory> {
    parse_rollup(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?)
}

fn parse_rollup(text: &str) -> Option<Memory> {
    let kib = |name| field(text, name);
    Some(Memory {
        pss_kib: kib("Pss:")?,
        uss_kib: kib("Private_Clean:")? + kib("Private_Dirty:")?,
        rss_kib: kib("Rss:")?,
    })
}

/// The number behind a name at the start of a line.
pub(super) fn field(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(name));
    lines.next()?.split_whitespace().next()?.parse().ok()
}

/// Processor time of a living process and of the children it has waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cpu {
    pub(super) own: Duration,
    pub(super) children: Duration,
}

/// The kernel counts both exactly and rounds /proc/PID/stat down to a tick (10 ms), which is most of a
/// clone's start. The scheduler's own nanoseconds say more, but forget threads that have ended: the larger
/// one is nearer to the truth, and never above it.
pub(super) fn cpu(pid: u32) -> Option<Cpu> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut cpu = parse_stat(&stat, rustix::param::clock_ticks_per_second())?;
    let threads = task_files(pid, "schedstat");
    let threads = threads.filter_map(|text| parse_schedstat(&text)).sum();
    cpu.own = cpu.own.max(threads);
    Some(cpu)
}

/// Fields 14 to 17: utime, stime, cutime, cstime. The name, field 2, may hold anything but is in parentheses.
fn parse_stat(text: &str, ticks_per_second: u64) -> Option<Cpu> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut time = || -> Option<Duration> {
        let mut ticks = || fields.next()?.parse::<u64>().ok();
        Some(from_ticks(
            ticks()?.checked_add(ticks()?)?,
            ticks_per_second,
        ))
    };
    Some(Cpu {
        own: time()?,
        children: time()?,
    })
}

/// A count of ticks as time.
pub(super) fn from_ticks(ticks: u64, per_second: u64) -> Duration {
    let per_second = per_second.max(1);
    let nanos = (ticks % per_second).saturating_mul(1_000_000_000) / per_second;
    Duration::from_secs(ticks / per_second) + Duration::from_nanos(nanos)
}

/// The first field: nanoseconds on a processor.
fn parse_schedstat(text: &str) -> Option<Duration> {
    let nanos = text.split_whitespace().next()?.parse().ok()?;
    Some(Duration::from_nanos(nanos))
}

/// How often the process's threads have gone to sleep, which is how often they were woken.
pub(super) fn sleeps(pid: u32) -> u64 {
    task_files(pid, "status")
        .filter_map(|text| field(&text, "voluntary_ctxt_switches:"))
        .sum()
}

/// Those that it has started and not waited for, where the kernel tells (CONFIG_PROC_CHILDREN).
pub(super) fn children(pid: u32) -> Vec<u32> {
    let numbers = |text: String| -> Vec<u32> {
        let words = text.split_whitespace();
        words.filter_map(|word| word.parse().ok()).collect()
    };
    task_files(pid, "children").flat_map(numbers).collect()
}

/// One file of each thread.
fn task_files(pid: u32, name: &'static str) -> impl Iterator<Item = String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    let tasks = tasks.into_iter().flatten().flatten();
    tasks.filter_map(move |task| fs::read_to_string(task.path().join(name)).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_rollup_is_read_by_name() {
        let text = "\
00400000-7ffd5000 ---p 00000000 00:00 0                      [rollup]
Rss:                1524 kB
Pss:                 613 kB
Pss_Dirty:           180 kB
Shared_Clean:        900 kB
Shared_Dirty:          4 kB
Private_Clean:       440 kB
Private_Dirty:       180 kB
";
        let memory = parse_rollup(text).unwrap();
        assert_eq!(
            (memory.rss_kib, memory.pss_kib, memory.uss_kib),
            (1524, 613, 620)
        );
        assert_eq!(parse_rollup("Rss: 1 kB\nPss: 1 kB\n"), None);
    }

    #[test]
    fn a_process_may_be_called_anything() {
        let stat = "77 (a) b (c) 9) S 1 77 77 0 -1 4194560 150 0 0 0 12 34 5 6 20 0 1 0 100 0 0";
        let cpu = parse_stat(stat, 100).unwrap();
        assert_eq!(cpu.own, Duration::from_millis(460));
        assert_eq!(cpu.children, Duration::from_millis(110));
        assert_eq!(parse_stat("77 (a) S 1", 100), None);
        assert_eq!(parse_stat("", 100), None);
    }

    #[test]
    fn ticks_are_time() {
        assert_eq!(from_ticks(250, 100), Duration::from_millis(2500));
        assert_eq!(from_ticks(1, 300), Duration::from_nanos(3_333_333));
        assert_eq!(from_ticks(u64::MAX, 1).as_secs(), u64::MAX);
        assert_eq!(
            parse_schedstat("1500000 7 9\n"),
            Some(Duration::from_micros(1500))
        );
        assert_eq!(parse_schedstat(""), None);
    }

    /// A shell of ours; this process itself is no subject, since threads of other tests come and go in it.
    struct Shell(std::process::Child);

    impl Shell {
        fn run(script: &str) -> Self {
            let mut command = std::process::Command::new("sh");
            Self(command.args(["-c", script]).spawn().unwrap())
        }

        fn until(&self, holds: impl Fn(u32) -> bool) {
            let deadline = Instant::now() + Duration::from_secs(60);
            while !holds(self.0.id()) {
                assert!(Instant::now() < deadline);
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    impl Drop for Shell {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    #[test]
    fn a_process_has_figures_and_a_dead_one_none() {
        let memory = memory(std::process::id()).unwrap();
        assert!(memory.rss_kib >= memory.pss_kib && memory.pss_kib >= memory.uss_kib);
        let busy = Shell::run("while :; do :; done");
        busy.until(|pid| cpu(pid).unwrap().own > Duration::from_millis(20));
        assert!(children(std::process::id()).contains(&busy.0.id()));
        let sleepy = Shell::run("while :; do sleep 0.01; done");
        sleepy.until(|pid| sleeps(pid) >= 3);
        assert!(cpu(u32::MAX).is_none());
        assert_eq!(sleeps(u32::MAX), 0);
        assert!(children(u32::MAX).is_empty());
    }
}
