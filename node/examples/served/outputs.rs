//! What a command says, kept.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use rundlet_node::api::node::Finished;

/// What a command has said.
#[derive(Default)]
pub(crate) struct Outputs {
    pub(crate) stdout: Arc<Mutex<Vec<u8>>>,
    pub(crate) stderr: Arc<Mutex<Vec<u8>>>,
}

impl Outputs {
    pub(crate) fn finished(&self, status: rundlet_protocol::ExitStatus) -> Finished {
        let take = |it: &Mutex<Vec<u8>>| {
            std::mem::take(&mut *it.lock().unwrap_or_else(PoisonError::into_inner))
        };
        Finished {
            status,
            stdout: take(&self.stdout),
            stderr: take(&self.stderr),
            truncated: false,
        }
    }
}

pub(crate) struct Output(pub(crate) Arc<Mutex<Vec<u8>>>);

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
