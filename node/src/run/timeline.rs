//! Named instants of one run: ours, the VMM's, the guest's.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rundlet_protocol::Ready;
use serde::Serialize;

/// Each part counts from its own zero: ours from the request, the VMM's from its start, the guest's
/// from its kernel's boot or, in a clone, from the moment it was asked to renew itself.
#[derive(Debug, Serialize)]
pub(crate) struct Timeline {
    #[serde(skip)]
    since: Instant,
    node_us: BTreeMap<&'static str, u64>,
    vmm_us: Option<BTreeMap<String, u64>>,
    guest_us: Option<BTreeMap<&'static str, u64>>,
}

#[derive(Serialize)]
struct Line<'a> {
    timeline: &'a Timeline,
}

impl Timeline {
    pub(super) fn new(since: Instant) -> Self {
        Self {
            since,
            node_us: BTreeMap::from([("request", 0)]),
            vmm_us: None,
            guest_us: None,
        }
    }

    pub(super) fn mark(&mut self, name: &'static str) {
        self.mark_at(name, Instant::now());
    }

    pub(super) fn mark_at(&mut self, name: &'static str, at: Instant) {
        let us = at.saturating_duration_since(self.since).as_micros();
        self.node_us
            .insert(name, u64::try_from(us).unwrap_or(u64::MAX));
    }

    pub(super) fn vmm(&mut self, instants: BTreeMap<String, u64>) {
        self.vmm_us = Some(instants);
    }

    pub(super) fn has_vmm(&self) -> bool {
        self.vmm_us.is_some()
    }

    pub(super) fn guest(&mut self, ready: &Ready) {
        let instants = [("init", ready.init_us), ("ready", ready.ready_us)];
        self.guest_us = Some(BTreeMap::from(instants));
    }

    pub(super) fn renewed(&mut self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.guest_us = Some(BTreeMap::from([("renewed", us)]));
    }

    /// One line.
    pub(super) fn json(&self) -> String {
        serde_json::to_string(&Line { timeline: self }).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_count_from_the_request() {
        let since = Instant::now();
        let mut timeline = Timeline::new(since);
        timeline.mark_at("ready", since + Duration::from_millis(3));
        timeline.vmm(BTreeMap::from([("kvm".to_owned(), 7)]));
        assert_eq!(
            timeline.json(),
            r#"{"timeline":{"node_us":{"ready":3000,"request":0},"vmm_us":{"kvm":7},"guest_us":null}}"#
        );
    }
}
