//! Named instants between exec and the guest's agent being ready.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::lock::lock;
use crate::wire::Event;

/// A shared list of instants; cheap to mark from any thread.
#[derive(Clone, Debug)]
pub struct Timeline {
    start: Instant,
    marks: Arc<Mutex<Vec<(&'static str, u64)>>>,
}

impl Timeline {
    /// Starts at exec: that lies as far back as this process has used CPU time, since until `main`
    /// it does nothing but run. Call first in `main`.
    #[must_use]
    pub fn start() -> Self {
        let used = clock_gettime(ClockId::ProcessCPUTime);
        let used = Duration::new(
            u64::try_from(used.tv_sec).unwrap_or(0),
            u32::try_from(used.tv_nsec).unwrap_or(0),
        );
        let now = Instant::now();
        let timeline = Self {
            start: now.checked_sub(used).unwrap_or(now),
            marks: Arc::default(),
        };
        timeline.mark("main");
        timeline
    }

    /// Starts at `request`, an instant that lies in the past: a clone's life begins when it is asked for,
    /// which is before its process is there.
    #[must_use]
    pub fn since(request: Instant) -> Self {
        Self {
            start: request,
            marks: Arc::default(),
        }
    }

    /// Notes that `name` happened now.
    pub fn mark(&self, name: &'static str) {
        let since = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX);
        lock(&self.marks).push((name, since));
    }

    /// What was noted so far, in order.
    #[must_use]
    pub fn event(&self) -> Event {
        let marks = lock(&self.marks);
        Event::Timeline {
            instants_us: marks.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_began_earlier_counts_from_there() {
        let timeline = Timeline::since(Instant::now() - Duration::from_secs(1));
        timeline.mark("forked");
        let Event::Timeline { instants_us } = timeline.event() else {
            panic!("another event");
        };
        assert!(matches!(instants_us[..], [("forked", 1_000_000..)]));
    }

    #[test]
    fn instants_keep_their_order() {
        let timeline = Timeline::start();
        timeline.mark("zebra");
        timeline.clone().mark("adder");
        let line = timeline.event().to_line();
        let at = |name: &str| line.find(name).unwrap();
        assert!(
            at("main") < at("zebra") && at("zebra") < at("adder"),
            "{line}"
        );
        assert!(
            line.starts_with(r#"{"event":"timeline","instants_us":{"main":"#),
            "{line}"
        );
    }
}
