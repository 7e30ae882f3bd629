//! Where vCPU threads leave the reason for the end, and the main thread finds it.

use std::io;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::events::{EventLoop, EventSet, Subscriber};
use crate::lock::lock;
use crate::outcome::Outcome;

/// The reason for the end; the first one counts.
#[derive(Clone, Debug)]
pub struct ExitSlot {
    outcome: Arc<Mutex<Option<Outcome>>>,
    wake: Arc<EventFd>,
}

impl ExitSlot {
    /// An empty slot.
    pub fn new() -> io::Result<Self> {
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Self {
            outcome: Arc::default(),
            wake: Arc::new(wake),
        })
    }

    /// An empty slot that ends `events` when it is filled.
    pub fn watched_by(events: &mut EventLoop) -> io::Result<Self> {
        let slot = Self::new()?;
        let registrar = events.subscribe(Arc::new(Mutex::new(slot.clone())));
        registrar.add(slot.wake(), 0, EventSet::IN)?;
        Ok(slot)
    }

    /// The descriptor to wait on.
    #[must_use]
    pub fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// Takes the reason, if there is one.
    #[must_use]
    pub fn take(&self) -> Option<Outcome> {
        lock(&self.outcome).take()
    }

    pub(super) fn put(&self, outcome: Outcome) {
        let mut slot = lock(&self.outcome);
        slot.get_or_insert(outcome);
        if let Err(error) = self.wake.write(1) {
            log::error!("cannot wake the main thread: {error}");
        }
    }
}

impl Subscriber for ExitSlot {
    fn ready(&mut self, _: u32, _: EventSet) -> ControlFlow<Outcome> {
        match self.take() {
            Some(outcome) => ControlFlow::Break(outcome),
            None => ControlFlow::Continue(()),
        }
    }
}
