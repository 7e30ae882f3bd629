//! One output stream of a command: a thread of its own passes the bytes on, so that a reader who is
//! stuck on stdout delays neither stderr nor the exit code of another command.
//!
//! At most [`WINDOW`] bytes wait here; a guest that sends more has broken the protocol.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use rundlet_protocol::WINDOW;

use super::command::Sink;
use super::outbox::Outbox;
use super::{AgentError, CommandEvent, Stream};

/// Credit goes back in steps of this many bytes: small enough to keep the guest writing, large enough
/// that a program which prints byte by byte does not cost a frame for each.
const CREDIT_STEP: u32 = WINDOW / 8;

/// The receiving half, held by the connection's reader.
#[derive(Debug)]
pub(super) struct Output {
    stream: Stream,
    chunks: Sender<Vec<u8>>,
    allowance: Arc<AtomicU32>,
    writer: JoinHandle<()>,
}

impl Output {
    pub(super) fn start(
        stream: Stream,
        to: Box<dyn Write + Send>,
        outbox: Arc<Outbox>,
        sink: Sink,
    ) -> io::Result<Self> {
        let (chunks, received) = mpsc::channel();
        let allowance = Arc::new(AtomicU32::new(WINDOW));
        let writer = Writer {
            stream,
            outbox,
            sink,
            allowance: Arc::clone(&allowance),
            owed: 0,
        };
        let writer = thread::Builder::new()
            .name(format!("{stream:?}").to_lowercase())
            .spawn(move || writer.run(&received, to))?;
        Ok(Self {
            stream,
            chunks,
            allowance,
            writer,
        })
    }

    /// Takes bytes that the guest has sent.
    pub(super) fn receive(&self, bytes: &[u8]) -> Result<(), AgentError> {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.allowance
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| {
                left.checked_sub(length)
            })
            .map_err(|_| {
                AgentError::Protocol(format!("it sent more {:?} than it may", self.stream))
            })?;
        // The writer only ends after this sender is gone.
        let _ = self.chunks.send(bytes.to_vec());
        Ok(())
    }

    /// Waits until everything has been passed on.
    pub(super) fn finish(self) {
        drop(self.chunks);
        if self.writer.join().is_err() {
            log::error!("the thread that writes {:?} panicked", self.stream);
        }
    }
}

struct Writer {
    stream: Stream,
    outbox: Arc<Outbox>,
    sink: Sink,
    allowance: Arc<AtomicU32>,
    owed: u32,
}

impl Writer {
    fn run(mut self, chunks: &Receiver<Vec<u8>>, mut to: Box<dyn Write + Send>) {
        let mut open = true;
        for chunk in chunks {
            if open && let Err(error) = to.write_all(&chunk).and_then(|()| to.flush()) {
                // The rest is taken and dropped, so that the command can end.
                open = false;
                (self.sink)(CommandEvent::OutputClosed(self.stream, error));
            }
            self.credit(chunk.len());
        }
    }

    fn credit(&mut self, bytes: usize) {
        self.owed = self
            .owed
            .saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        if self.owed >= CREDIT_STEP {
            self.allowance.fetch_add(self.owed, Ordering::AcqRel);
            self.outbox.give_credit(self.stream, self.owed);
            self.owed = 0;
        }
    }
}
