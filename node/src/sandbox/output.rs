//! A command whose output is kept, for callers that run many and pass on none.

use std::io::{self, Read, Write};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rundlet_protocol::{ExecSpec, ExitStatus, Failure};

use crate::agent::{AgentError, CommandEvent, Connection, Streams};

/// What a command left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// Whether there was more of a stream than is kept.
    pub truncated: bool,
    /// From the request to the first byte of output, if there was any.
    pub first_output: Option<Duration>,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error("cannot run the command: {}", .0.message)]
    Command(Failure),
    #[error("the command was not done within {} seconds", .0.as_secs())]
    Late(Duration),
}

/// How a command is run whose output is kept.
#[derive(Debug)]
pub(crate) struct Terms {
    pub(crate) limit: Duration,
    /// Most that is kept of one stream, bytes; the rest is read and forgotten.
    pub(crate) keep: usize,
    /// What it reads, if its spec says so.
    pub(crate) stdin: Vec<u8>,
}

impl Output {
    /// Runs the command on a greeted connection.
    pub(crate) fn of(
        connection: Connection,
        spec: ExecSpec,
        terms: Terms,
    ) -> Result<Self, OutputError> {
        let began = Instant::now();
        let Terms { limit, keep, stdin } = terms;
        let (stdout, stderr) = (Kept::at_most(keep), Kept::at_most(keep));
        let stdin: Box<dyn Read + Send> = Box::new(io::Cursor::new(stdin));
        let streams = Streams {
            stdin: spec.stdin.then_some(stdin),
            stdout: Box::new(stdout.clone()),
            stderr: Box::new(stderr.clone()),
        };
        let (sender, events) = mpsc::channel();
        // Dropped at the end, which is the end of the command, too.
        let _command = connection.exec(spec, streams, move |event| drop(sender.send(event)))?;
        let mut first_output = None;
        let status = loop {
            match events.recv_timeout(limit.saturating_sub(began.elapsed())) {
                Ok(CommandEvent::FirstOutput) => first_output = Some(began.elapsed()),
                Ok(CommandEvent::Exited(status)) => break status,
                Ok(CommandEvent::Failed(failure)) => return Err(OutputError::Command(failure)),
                Ok(CommandEvent::Lost(error)) => return Err(error.into()),
                Ok(CommandEvent::Started(_) | CommandEvent::OutputClosed(..)) => {}
                Err(RecvTimeoutError::Timeout) => return Err(OutputError::Late(limit)),
                Err(RecvTimeoutError::Disconnected) => return Err(AgentError::Closed.into()),
            }
        };
        let ((stdout, more_out), (stderr, more_err)) = (stdout.take(), stderr.take());
        Ok(Self {
            status,
            stdout,
            stderr,
            truncated: more_out || more_err,
            first_output,
        })
    }
}

/// The beginning of a stream.
#[derive(Clone, Debug)]
struct Kept {
    bytes: Arc<Mutex<(Vec<u8>, bool)>>,
    most: usize,
}

impl Kept {
    fn at_most(most: usize) -> Self {
        let bytes = Arc::default();
        Self { bytes, most }
    }

    /// What there is, and whether there was more.
    fn take(&self) -> (Vec<u8>, bool) {
        std::mem::take(&mut self.bytes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kept = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let room = self.most.saturating_sub(kept.0.len()).min(bytes.len());
        kept.0
            .extend_from_slice(bytes.get(..room).unwrap_or_default());
        kept.1 |= room < bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_is_kept_and_the_rest_is_taken_all_the_same() {
        let mut kept = Kept::at_most(1000);
        kept.write_all(&[7; 999]).unwrap();
        kept.write_all(b"a").unwrap();
        let (all, more) = kept.take();
        assert_eq!((all.len(), more), (1000, false));
        kept.write_all(&[7; 999]).unwrap();
        kept.write_all(b"ab").unwrap();
        kept.write_all(b"c").unwrap();
        let (all, more) = kept.take();
        assert_eq!((all.len(), more), (1000, true));
        assert_eq!(all.last(), Some(&b'a'));
    }
}
