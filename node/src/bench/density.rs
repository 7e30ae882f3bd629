//! `rundlet bench density`: more and more idle sandboxes of one system, and what each costs the host.
//!
//! Systems come one after the other, each on a host that the one before has left.

use std::time::{Duration, Instant};

use super::batch;
use super::contender::Contender;
use super::host::{CpuClock, HostMemory};
use super::numbers::{Summary, float};
use super::process::{self, Memory};
use super::report::{Density, DensityRow, milliseconds, rounded};
use super::session::Session;
use super::system::{Process, Role, Sandbox, System};

/// What to measure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DensityPlan {
    /// Sandboxes at the end.
    pub count: usize,
    /// From one row to the next.
    pub step: usize,
    /// How many are started at a time.
    pub at_once: usize,
    /// How long the idle host is watched for a row.
    pub quiet: Duration,
}

/// What the next sandboxes are expected to cost before there were any, KiB each.
const FIRST_GUESS_KIB: u64 = 32 * 1024;

/// Measures all contenders and writes their rows.
pub(super) fn measure(contenders: &mut [Contender<'_>], plan: &DensityPlan, session: &Session) {
    let starts = contenders.len() * plan.count;
    session
        .progress
        .set_length(starts.try_into().unwrap_or(u64::MAX));
    for contender in contenders {
        if session.is_interrupted() {
            return;
        }
        session.say(format!("{}: waiting for a quiet host", contender.name()));
        session.settle();
        let before = HostMemory::now();
        contender.open();
        let Some(system) = contender.system() else {
            continue;
        };
        let mut deployed = Deployed::new(before);
        let stopped = climb(system, plan, session, &mut deployed, contender.name());
        let Deployed {
            sandboxes, rows, ..
        } = deployed;
        batch::end(sandboxes);
        contender.close();
        contender.report.density = Some(Density { rows, stopped });
    }
}

/// What there is of one system.
struct Deployed {
    /// The host before.
    before: HostMemory,
    sandboxes: Vec<Box<dyn Sandbox>>,
    rows: Vec<DensityRow>,
}

impl Deployed {
    fn new(before: HostMemory) -> Self {
        Self {
            before,
            sandboxes: Vec::new(),
            rows: Vec::new(),
        }
    }

    /// Memory that one more is expected to cost, KiB.
    fn guess_kib(&self) -> u64 {
        let used = self
            .before
            .available_kib
            .saturating_sub(HostMemory::now().available_kib);
        let count = u64::try_from(self.sandboxes.len()).unwrap_or(u64::MAX);
        used.checked_div(count).unwrap_or(FIRST_GUESS_KIB)
    }
}

/// Step by step; why it ended early.
fn climb(
    system: &dyn System,
    plan: &DensityPlan,
    session: &Session,
    deployed: &mut Deployed,
    name: &str,
) -> Option<String> {
    while deployed.sandboxes.len() < plan.count {
        let next = plan.step.min(plan.count - deployed.sandboxes.len());
        if let Some(why) = Session::out_of_memory(next, deployed.guess_kib()) {
            return Some(why);
        }
        session.say(format!("{name}: deploying"));
        let batch = batch::start(system, next, plan.at_once, session);
        if session.is_interrupted() {
            deployed.sandboxes.extend(batch.ready);
            return Some("interrupted".into());
        }
        let starts: Vec<f64> = (batch.ready.iter())
            .map(|it| milliseconds(it.started().took()))
            .collect();
        let host_cpu_ms = (!starts.is_empty())
            .then(|| rounded(milliseconds(batch.host_cpu) / float(starts.len())));
        deployed.sandboxes.extend(batch.ready);
        if !deployed.sandboxes.is_empty() {
            session.say(format!("{name}: watching {}", deployed.sandboxes.len()));
            session.settle();
            let row = row(system, deployed, plan.quiet);
            deployed.rows.push(DensityRow {
                start_ms: Summary::of(&starts),
                host_cpu_ms,
                ..row
            });
        }
        if let Some(failure) = batch.failed.first() {
            return Some(format!(
                "{} of the next {next} did not start: {failure}",
                batch.failed.len()
            ));
        }
    }
    None
}

/// Sums over processes, by what they are to a sandbox.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    memory: Memory,
    sleeps: u64,
}

fn sums(processes: &[Process], role: Role) -> Sums {
    let mut sums = Sums::default();
    for it in processes.iter().filter(|it| it.role == role) {
        sums.memory.add(process::memory(it.pid).unwrap_or_default());
        sums.sleeps += process::sleeps(it.pid);
    }
    sums
}

fn sleeps(processes: &[Process], role: Role) -> u64 {
    let wanted = processes.iter().filter(|it| it.role == role);
    wanted.map(|it| process::sleeps(it.pid)).sum()
}

fn row(system: &dyn System, deployed: &Deployed, quiet: Duration) -> DensityRow {
    let own = deployed.sandboxes.iter().flat_map(|it| it.processes());
    let processes: Vec<Process> = own.chain(system.shared()).collect();
    let now = HostMemory::now();
    let [vmm, backend, helper] =
        [Role::Vmm, Role::Backend, Role::Helper].map(|role| sums(&processes, role));

    // Again, as looking at memory may have woken somebody.
    let before = [Role::Vmm, Role::Backend].map(|role| sleeps(&processes, role));
    let (clock, began) = (CpuClock::now(), Instant::now());
    std::thread::sleep(quiet);
    let idle_cpu = CpuClock::now().busy_since(clock);
    let seconds = began.elapsed().as_secs_f64().max(f64::MIN_POSITIVE);
    let after = [Role::Vmm, Role::Backend].map(|role| sleeps(&processes, role));

    let count = float(deployed.sandboxes.len());
    let each = |sum: u64| rounded(float(sum) / count);
    let grown = |field: fn(&HostMemory) -> u64| {
        rounded((float(field(&now)) - float(field(&deployed.before))) / count)
    };
    let woken =
        |[before, after]: [u64; 2]| rounded(float(after.saturating_sub(before)) / count / seconds);
    DensityRow {
        deployed: deployed.sandboxes.len(),
        pss_kib: each(vmm.memory.pss_kib),
        uss_kib: each(vmm.memory.uss_kib),
        backend_pss_kib: each(backend.memory.pss_kib),
        backend_uss_kib: each(backend.memory.uss_kib),
        helper_pss_kib: each(helper.memory.pss_kib),
        helper_uss_kib: each(helper.memory.uss_kib),
        available_drop_kib: -grown(|it| it.available_kib),
        page_tables_kib: grown(|it| it.page_tables_kib),
        secondary_page_tables_kib: grown(|it| it.secondary_page_tables_kib),
        slab_kib: grown(|it| it.slab_kib),
        wakeups_per_s: woken([before[0], after[0]]),
        backend_wakeups_per_s: woken([before[1], after[1]]),
        idle_cpu_ms_per_s: rounded(milliseconds(idle_cpu) / count / seconds),
        quiet_s: rounded(seconds),
        start_ms: None,
        host_cpu_ms: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::fake::Fake;
    use crate::bench::system::Kind;

    const PLAN: DensityPlan = DensityPlan {
        count: 5,
        step: 2,
        at_once: 2,
        quiet: Duration::from_millis(30),
    };

    fn measured(fake: fn() -> Fake, session: &Session) -> Density {
        let mut contenders = [Contender::new("fake", Kind::Cold, Vec::new(), move || {
            Ok(Box::new(fake()))
        })];
        measure(&mut contenders, &PLAN, session);
        let [contender] = contenders;
        contender.report.density.unwrap_or_default()
    }

    #[test]
    fn there_is_a_row_for_each_step_and_one_for_the_rest() {
        let density = measured(Fake::default, &Session::quiet());
        let counts: Vec<_> = density.rows.iter().map(|row| row.deployed).collect();
        assert_eq!(counts, [2, 4, 5]);
        assert_eq!(density.stopped, None);
        // Each sandbox of the fake is this very process; its backend is nobody.
        for row in &density.rows {
            assert!(row.pss_kib > 100.0 && row.uss_kib <= row.pss_kib, "{row:?}");
            assert!(row.backend_pss_kib.abs() < f64::EPSILON);
            assert!(row.quiet_s >= 0.03);
            let start = row.start_ms.unwrap();
            assert!((start.max - 10.0).abs() < 0.01, "{start:?}");
        }
    }

    #[test]
    fn a_failure_ends_it_with_the_reason_and_keeps_what_was_measured() {
        let density = measured(|| Fake::failing_at(3), &Session::quiet());
        let counts: Vec<_> = density.rows.iter().map(|row| row.deployed).collect();
        assert_eq!(counts, [2, 3]);
        let why = density.stopped.unwrap();
        assert_eq!(
            why,
            "1 of the next 2 did not start: number 3 does not start"
        );
    }

    #[test]
    fn an_interruption_ends_it() {
        let session = Session::quiet();
        session.interrupt(2);
        assert!(measured(Fake::default, &session).rows.is_empty());
    }
}
