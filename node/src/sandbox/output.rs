//! A command whose output is kept, for callers that run many and pass on none.

use std::io::{self, Write};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rundlet_protocol::{ExecSpec, ExitStatus, Failure};

use crate::agent::{AgentError, CommandEvent, Connection, Streams};

/// Most that is kept of one stream, bytes; the rest is read and forgotten.
const MAX: usize = 1024 * 1024;

/// What a command left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
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

impl Output {
    /// Runs the command on a greeted connection.
    pub(super) fn of(
        connection: Connection,
        spec: ExecSpec,
        limit: Duration,
    ) -> Result<Self, OutputError> {
        let began = Instant::now();
        let (stdout, stderr) = (Kept::default(), Kept::default());
        let streams = Streams {
            stdin: None,
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
        Ok(Self {
            status,
            stdout: stdout.take(),
            stderr: stderr.take(),
            first_output,
        })
    }
}

/// The beginning of a stream.
#[derive(Clone, Debug, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Kept {
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = MAX.saturating_sub(kept.len()).min(bytes.len());
        kept.extend_from_slice(bytes.get(..room).unwrap_or_default());
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
        let mut kept = Kept::default();
        let bytes = vec![7; MAX - 1];
        kept.write_all(&bytes).unwrap();
        kept.write_all(b"ab").unwrap();
        kept.write_all(b"c").unwrap();
        let all = kept.take();
        assert_eq!(all.len(), MAX);
        assert_eq!(all.last(), Some(&b'a'));
    }
}
