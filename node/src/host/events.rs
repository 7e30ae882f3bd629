//! What happens, numbered, for whoever watches. A bounded number of events is kept; who reads too slowly is
//! told how many it has missed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use super::model::{Event, What};

/// Events that are kept.
const KEPT: usize = 4096;

/// All events so far.
#[derive(Debug)]
pub(super) struct Events {
    kept: Mutex<Kept>,
    /// The sequence of the last one.
    last: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Kept {
    events: VecDeque<Event>,
    last: u64,
    over: bool,
}

impl Kept {
    /// The sequence of the oldest one there is, or of the next one there will be.
    fn first(&self) -> u64 {
        let length = u64::try_from(self.events.len()).unwrap_or(u64::MAX);
        self.last.saturating_sub(length).saturating_add(1)
    }
}

impl Events {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            kept: Mutex::default(),
            last: watch::Sender::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn publish(&self, what: What) {
        let mut kept = self.lock();
        kept.last += 1;
        let sequence = kept.last;
        kept.events.push_back(Event {
            sequence,
            at_ms: now_ms(),
            what,
        });
        if kept.events.len() > KEPT {
            kept.events.pop_front();
        }
        // Under the lock, so that watchers never see the numbers go back.
        self.last.send_replace(sequence);
    }

    /// Events after `since`, or from now on.
    pub(super) fn watch(self: &Arc<Self>, since: Option<u64>) -> Watch {
        let kept = self.lock();
        // A number that was not given yet is of an earlier daemon: all there is is news then.
        let since = since.map(|it| if it > kept.last { 0 } else { it });
        Watch {
            next: since.unwrap_or(kept.last) + 1,
            changes: self.last.subscribe(),
            events: Arc::clone(self),
        }
    }

    /// There will be no more.
    pub(super) fn close(&self) {
        self.lock().over = true;
        self.last.send_modify(|_| {});
    }
}

/// A reader of events. It holds up nobody.
#[derive(Debug)]
pub struct Watch {
    next: u64,
    changes: watch::Receiver<u64>,
    events: Arc<Events>,
}

impl Watch {
    /// The next event; `None` once the daemon ends.
    pub async fn recv(&mut self) -> Option<Event> {
        loop {
            self.changes.mark_unchanged();
            match self.take() {
                Taken::Event(event) => return Some(event),
                Taken::Over => return None,
                Taken::Nothing => self.changes.changed().await.ok()?,
            }
        }
    }

    fn take(&mut self) -> Taken {
        let kept = self.events.lock();
        let first = kept.first();
        if self.next < first {
            let count = first - self.next;
            self.next = first;
            return Taken::Event(Event {
                sequence: first - 1,
                at_ms: now_ms(),
                what: What::Missed { count },
            });
        }
        let index = usize::try_from(self.next - first).unwrap_or(usize::MAX);
        match kept.events.get(index) {
            Some(event) => {
                self.next += 1;
                Taken::Event(event.clone())
            }
            None if kept.over => Taken::Over,
            None => Taken::Nothing,
        }
    }
}

enum Taken {
    Event(Event),
    Nothing,
    Over,
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removed(id: usize) -> What {
        What::Removed { id: id.to_string() }
    }

    #[tokio::test]
    async fn a_watcher_gets_what_comes_in_order_and_then_the_end() {
        let events = Events::new();
        events.publish(removed(1));
        let (mut later, mut all) = (events.watch(None), events.watch(Some(0)));
        let reader = tokio::spawn(async move {
            let mut seen = Vec::new();
            while let Some(event) = later.recv().await {
                seen.push(event.sequence);
            }
            seen
        });
        for id in 2..=50 {
            events.publish(removed(id));
            tokio::task::yield_now().await;
        }
        events.close();
        assert_eq!(reader.await.unwrap(), (2..=50).collect::<Vec<_>>());
        assert_eq!(all.recv().await.unwrap().what, removed(1));
    }

    #[tokio::test]
    async fn who_is_too_slow_learns_how_much_it_has_missed() {
        let events = Events::new();
        let mut watch = events.watch(None);
        for id in 1..=KEPT + 10 {
            events.publish(removed(id));
        }
        let missed = watch.recv().await.unwrap();
        assert_eq!(missed.what, What::Missed { count: 10 });
        let next = watch.recv().await.unwrap();
        assert_eq!((missed.sequence, next.sequence), (10, 11));
        assert_eq!(next.what, removed(11));
    }

    #[tokio::test]
    async fn a_number_of_an_earlier_daemon_means_everything() {
        let events = Events::new();
        events.publish(removed(1));
        let mut watch = events.watch(Some(9000));
        assert_eq!(watch.recv().await.unwrap().sequence, 1);
        let mut watch = events.watch(Some(1));
        events.publish(removed(2));
        assert_eq!(watch.recv().await.unwrap().sequence, 2);
    }
}
