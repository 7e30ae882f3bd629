//! What is under way, for a daemon that wants to end.

use std::time::Duration;

use tokio::sync::mpsc;

/// Hands out tokens.
#[derive(Clone, Debug)]
pub(crate) struct Work(mpsc::Sender<()>);

/// Something is under way until this is dropped.
#[derive(Debug)]
pub(crate) struct UnderWay(
    #[expect(dead_code, reason = "its end is what it says")] mpsc::Sender<()>,
);

/// Sees when all of it has ended.
#[derive(Debug)]
pub(crate) struct Watcher(mpsc::Receiver<()>);

impl Work {
    pub(crate) fn new() -> (Self, Watcher) {
        let (sender, receiver) = mpsc::channel(1);
        (Self(sender), Watcher(receiver))
    }

    pub(crate) fn begin(&self) -> UnderWay {
        UnderWay(self.0.clone())
    }
}

impl Watcher {
    /// Waits until nothing is under way and nobody can begin anything, no longer than `limit`; whether that is so.
    pub(crate) async fn all(&mut self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.0.recv()).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_is_the_end_of_all_work() {
        let (work, mut watcher) = Work::new();
        let under_way = work.begin();
        drop(work);
        assert!(!watcher.all(Duration::from_millis(10)).await);
        drop(under_way);
        assert!(watcher.all(Duration::from_secs(20)).await);
    }
}
