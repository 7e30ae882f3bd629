//! Layers made ahead of the sessions that will use them, so that a VM's start does not wait for a
//! copy.
//!
//! Must hold: the pool never makes more than its depth ahead, never spins on an error, and its
//! thread ends when the pool is dropped.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::{io, thread};

use super::{Error, Layer, Template};

/// Ready layers of one template. Takers on any thread.
#[derive(Debug)]
pub struct Pool {
    template: Arc<Template>,
    ready: Option<Mutex<Receiver<Layer>>>,
}

impl Pool {
    /// Keeps `depth` layers ready; none when `depth` is 0.
    pub fn start(template: Arc<Template>, depth: usize) -> io::Result<Self> {
        let mut pool = Self {
            template,
            ready: None,
        };
        // One more waits in the filler's hands.
        if let Some(room) = depth.checked_sub(1) {
            let (sender, receiver) = sync_channel(room);
            let template = Arc::clone(&pool.template);
            thread::Builder::new()
                .name("layer-pool".into())
                .stack_size(128 << 10)
                .spawn(move || fill(&template, &sender))?;
            pool.ready = Some(Mutex::new(receiver));
        }
        Ok(pool)
    }

    pub fn template(&self) -> &Template {
        &self.template
    }

    /// A ready layer, else one made now.
    pub fn take(&self) -> Result<Layer, Error> {
        if let Some(ready) = &self.ready {
            let ready = ready.lock().unwrap_or_else(PoisonError::into_inner);
            if let Ok(layer) = ready.try_recv() {
                return Ok(layer);
            }
        }
        self.template.layer()
    }
}

/// Ends on the first error: from then on every taker makes its own layer and reports what is wrong.
fn fill(template: &Template, ready: &SyncSender<Layer>) {
    loop {
        match template.layer() {
            Ok(layer) => {
                if ready.send(layer).is_err() {
                    return;
                }
            }
            Err(error) => {
                log::warn!(
                    "no more scratch layers ahead: {:#}",
                    anyhow::Error::new(error)
                );
                return;
            }
        }
    }
}
