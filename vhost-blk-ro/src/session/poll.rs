//! How long a worker keeps looking at its ring after work before it sleeps until the next kick.
//!
//! Looking costs CPU; sleeping costs the guest an exit for the kick and us a wake-up. So the time
//! adapts: it grows while the next request comes soon after the worker slept, and falls to nothing
//! when it does not. An idle queue is never polled.

use std::time::{Duration, Instant};

/// The first step up from not polling at all.
const FIRST: Duration = Duration::from_micros(8);

#[derive(Debug)]
pub(super) struct Poll {
    max: Duration,
    window: Duration,
}

impl Poll {
    pub(super) fn new(max: Duration) -> Self {
        Self {
            max,
            window: Duration::ZERO,
        }
    }

    /// Looks for as long as seems worth it; true when `found` was.
    pub(super) fn look<E>(&self, mut found: impl FnMut() -> Result<bool, E>) -> Result<bool, E> {
        if self.window.is_zero() {
            return Ok(false);
        }
        let start = Instant::now();
        loop {
            // The clock costs more than a look.
            for _ in 0..16 {
                if found()? {
                    return Ok(true);
                }
                std::hint::spin_loop();
            }
            // Whoever has real work for this CPU goes first; that soon ends the window, too.
            std::thread::yield_now();
            if start.elapsed() >= self.window {
                return Ok(false);
            }
        }
    }

    /// Learns from a sleep that a kick ended.
    pub(super) fn slept(&mut self, time: Duration) {
        self.window = if time > self.max {
            // Halving would leave a rarely used queue polling after each request.
            Duration::ZERO
        } else {
            (self.window * 2).clamp(FIRST.min(self.max), self.max)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_micros(50);

    fn never() -> Result<bool, ()> {
        Ok(false)
    }

    #[test]
    fn starts_without_polling() {
        let looks = std::cell::Cell::new(0);
        let found = Poll::new(MAX).look(|| {
            looks.set(looks.get() + 1);
            never()
        });
        assert_eq!((found, looks.get()), (Ok(false), 0));
    }

    #[test]
    fn grows_with_short_sleeps_up_to_the_limit_and_stops_after_a_long_one() {
        let mut poll = Poll::new(MAX);
        for _ in 0..10 {
            poll.slept(Duration::from_micros(10));
        }
        assert_eq!(poll.window, MAX);
        assert_eq!(poll.look(|| Ok::<_, ()>(true)), Ok(true));
        let start = Instant::now();
        assert_eq!(poll.look(never), Ok(false));
        assert!(start.elapsed() >= MAX);
        poll.slept(Duration::from_millis(1));
        assert!(poll.window.is_zero());
    }

    #[test]
    fn a_limit_of_zero_never_polls() {
        let mut poll = Poll::new(Duration::ZERO);
        poll.slept(Duration::ZERO);
        assert!(poll.window.is_zero());
    }
}
