//! What a whole run shares: whether it was interrupted, its progress, the names of its sandboxes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::flag;

use super::host::{self, HostMemory};
use crate::claim;

/// Signals that ask for an end. The first one ends what is measured and takes everything down in order; the
/// second one ends this process, and the janitors do it.
const ENDING: [i32; 4] = [SIGINT, SIGTERM, SIGHUP, SIGQUIT];

/// Memory that the host keeps: a part of it, and never less than so many KiB.
const RESERVE_PERCENT: u64 = 6;
const RESERVE_KIB: u64 = 192 * 1024;

pub(super) struct Session {
    /// The number of a signal, 0 when there was none.
    signal: Arc<AtomicUsize>,
    pub(super) progress: ProgressBar,
    names: String,
    next: AtomicUsize,
    /// How long a wait for a quiet host may take.
    patience: Duration,
}

impl Session {
    pub(super) fn open(patience: Duration) -> io::Result<Self> {
        let signal = Arc::new(AtomicUsize::new(0));
        let again = Arc::new(AtomicBool::new(false));
        for number in ENDING {
            let as_usize = usize::try_from(number).unwrap_or_default();
            // In this order: at the first signal nothing asks for the second one's exit yet.
            flag::register_conditional_shutdown(number, 128 + number, Arc::clone(&again))?;
            flag::register(number, Arc::clone(&again))?;
            flag::register_usize(number, Arc::clone(&signal), as_usize)?;
        }
        let progress = ProgressBar::new(0);
        let style =
            ProgressStyle::with_template("{spinner} {msg} {wide_bar} {pos}/{len} {elapsed}");
        progress.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        progress.enable_steady_tick(Duration::from_millis(200));
        Ok(Self {
            signal,
            progress,
            names: format!("b{}", claim::random_hex()?),
            next: AtomicUsize::new(0),
            patience,
        })
    }

    /// Waits until the host is done with what came before.
    pub(super) fn settle(&self) {
        if !host::settle(self.patience) {
            log::info!("the host is still busy after {} s", self.patience.as_secs());
        }
    }

    /// The signal that asked for an end.
    pub(super) fn interruption(&self) -> Option<u8> {
        u8::try_from(self.signal.load(Ordering::Relaxed))
            .ok()
            .filter(|signal| *signal != 0)
    }

    pub(super) fn is_interrupted(&self) -> bool {
        self.interruption().is_some()
    }

    /// A name for a sandbox, used once on this host.
    pub(super) fn next_id(&self) -> String {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        format!("{}-{number}", self.names)
    }

    /// What is going on, for people.
    pub(super) fn say(&self, what: String) {
        self.progress.set_message(what);
    }

    /// Why no more sandboxes should be started that cost `kib` each, if the host is about to run out.
    pub(super) fn out_of_memory(count: usize, kib: u64) -> Option<String> {
        let need = kib.saturating_mul(u64::try_from(count).unwrap_or(u64::MAX));
        refuse(HostMemory::now().available_kib, host::total_kib(), need)
    }
}

fn refuse(available: u64, total: u64, need: u64) -> Option<String> {
    let reserve = RESERVE_KIB.max(total * RESERVE_PERCENT / 100);
    (available.saturating_sub(need) < reserve).then(|| {
        format!(
            "the host has {} MiB of memory left, the next ones would take about {}, and {} are its reserve",
            available / 1024,
            need / 1024,
            reserve / 1024
        )
    })
}

#[cfg(test)]
impl Session {
    /// Without signals and without a word.
    pub(super) fn quiet() -> Self {
        Self {
            signal: Arc::default(),
            progress: ProgressBar::hidden(),
            names: "b".into(),
            next: AtomicUsize::new(0),
            patience: Duration::ZERO,
        }
    }

    pub(super) fn interrupt(&self, signal: usize) {
        self.signal.store(signal, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_keeps_a_reserve() {
        let gib = 1024 * 1024;
        assert_eq!(refuse(4 * gib, 8 * gib, gib), None);
        let why = refuse(gib, 8 * gib, 600 * 1024).unwrap();
        assert!(why.contains("1024 MiB of memory left"), "{why}");
        assert!(why.contains("600"), "{why}");
        assert!(refuse(150 * 1024, 256 * 1024, 0).is_some());
    }

    #[test]
    fn names_are_used_once() {
        let session = Session::quiet();
        assert_ne!(session.next_id(), session.next_id());
        assert_eq!(session.interruption(), None);
        session.interrupt(15);
        assert_eq!(session.interruption(), Some(15));
    }
}
