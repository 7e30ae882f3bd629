//! One command in the guest: its streams, its signals, its end.

use std::fmt;
use std::io::{self, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use rundlet_protocol::frame::{self, Frame, MAX_DATA};
use rundlet_protocol::{ExecSpec, ExitStatus, Failure, Reply, Request, TtySize};

use super::outbox::Outbox;
use super::output::Output;
use super::{AgentError, Connection, Stream, name, unexpected};

/// Where a command's streams come from and go to.
pub struct Streams {
    /// Must be there when the [`ExecSpec`] says `stdin`.
    pub stdin: Option<Box<dyn Read + Send>>,
    pub stdout: Box<dyn Write + Send>,
    pub stderr: Box<dyn Write + Send>,
}

impl fmt::Debug for Streams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Streams")
            .field("stdin", &self.stdin.is_some())
            .finish_non_exhaustive()
    }
}

/// What happens to a command. [`Exited`](Self::Exited), [`Failed`](Self::Failed) and
/// [`Lost`](Self::Lost) are last; all output has been passed on by then.
#[derive(Debug)]
pub enum CommandEvent {
    /// It runs, under this process id in the guest.
    Started(u32),
    /// Its first byte of output has come.
    FirstOutput,
    /// Output cannot be passed on any more.
    OutputClosed(Stream, io::Error),
    Exited(ExitStatus),
    Failed(Failure),
    Lost(AgentError),
}

/// Takes the events, from several threads.
pub(super) type Sink = Arc<dyn Fn(CommandEvent) + Send + Sync>;

/// A command that was asked for. None of its methods block; dropping it closes the connection, on which
/// the agent kills the command.
#[derive(Debug)]
pub struct Command {
    outbox: Arc<Outbox>,
    stream: UnixStream,
}

impl Connection {
    /// Asks for the command and starts to carry its streams.
    ///
    /// # Errors
    /// The request is longer than the protocol allows, or threads cannot be made.
    pub fn exec(
        self,
        spec: ExecSpec,
        streams: Streams,
        sink: impl Fn(CommandEvent) + Send + Sync + 'static,
    ) -> Result<Command, AgentError> {
        let sink: Sink = Arc::new(sink);
        let outbox = Arc::new(Outbox::new());
        outbox.request(&Request::Exec(spec))?;
        let command = Command {
            outbox: Arc::clone(&outbox),
            stream: self.stream.try_clone().map_err(AgentError::Thread)?,
        };
        let output = |stream, to| Output::start(stream, to, Arc::clone(&outbox), Arc::clone(&sink));
        let reader = Reader {
            stdout: output(Stream::Stdout, streams.stdout).map_err(AgentError::Thread)?,
            stderr: output(Stream::Stderr, streams.stderr).map_err(AgentError::Thread)?,
            outbox: Arc::clone(&outbox),
            sink: Arc::clone(&sink),
            silent: true,
        };
        let incoming = self.stream.try_clone().map_err(AgentError::Thread)?;
        spawn("agent-read", move || reader.run(&incoming))?;
        if let Some(stdin) = streams.stdin {
            let outbox = Arc::clone(&outbox);
            spawn("stdin", move || pass_stdin(stdin, &outbox))?;
        }
        spawn("agent-write", move || outbox.pump(self.stream))?;
        Ok(command)
    }
}

impl Command {
    /// Sends a signal to the command's process group.
    ///
    /// # Errors
    /// The connection is over, or the guest does not read what it is sent.
    pub fn signal(&self, signal: i32) -> Result<(), AgentError> {
        self.outbox.request(&Request::Signal { signal })
    }

    /// Tells the command's terminal its new size.
    ///
    /// # Errors
    /// As [`Command::signal`].
    pub fn resize(&self, size: TtySize) -> Result<(), AgentError> {
        self.outbox.request(&Request::Resize {
            rows: size.rows,
            columns: size.columns,
        })
    }
}

impl Drop for Command {
    fn drop(&mut self) {
        self.outbox.close();
        // Fails only when the other side has closed already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), AgentError> {
    thread::Builder::new()
        .name(name.into())
        .spawn(body)
        .map(drop)
        .map_err(AgentError::Thread)
}

fn pass_stdin(mut from: Box<dyn Read + Send>, outbox: &Outbox) {
    let mut buffer = vec![0; MAX_DATA];
    while let Some(room) = outbox.stdin_room() {
        let space = buffer.get_mut(..room).unwrap_or_default();
        let count = match from.read(space) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                log::warn!("stdin ends here, it cannot be read: {error}");
                0
            }
        };
        let sent = outbox.stdin(buffer.get(..count).unwrap_or_default());
        if sent.is_err() || count == 0 {
            return;
        }
    }
}

/// Everything that comes from the agent.
struct Reader {
    stdout: Output,
    stderr: Output,
    outbox: Arc<Outbox>,
    sink: Sink,
    silent: bool,
}

impl Reader {
    fn run(mut self, from: &UnixStream) {
        let last = self.read(from);
        self.outbox.close();
        // Whatever is still on its way is of no use; fails when the other side has closed already.
        let _ = from.shutdown(Shutdown::Both);
        self.stdout.finish();
        self.stderr.finish();
        (self.sink)(last);
    }

    /// Reads until the event that is the last one.
    fn read(&mut self, from: &UnixStream) -> CommandEvent {
        let mut from = BufReader::with_capacity(MAX_DATA, from);
        let mut buffer = Vec::new();
        loop {
            let step = match frame::read(&mut from, &mut buffer) {
                Ok(Some(frame)) => self.take(&frame),
                Ok(None) => Err(AgentError::Closed),
                Err(error) => Err(error.into()),
            };
            match step {
                Ok(None) => {}
                Ok(Some(last)) => return last,
                Err(error) => return CommandEvent::Lost(error),
            }
        }
    }

    fn take(&mut self, frame: &Frame<'_>) -> Result<Option<CommandEvent>, AgentError> {
        match frame {
            Frame::Data(stream, bytes) => {
                let output = match stream {
                    Stream::Stdout => &self.stdout,
                    Stream::Stderr => &self.stderr,
                    Stream::Stdin => return Err(no_place(frame)),
                };
                if std::mem::take(&mut self.silent) {
                    (self.sink)(CommandEvent::FirstOutput);
                }
                output.receive(bytes)?;
                Ok(None)
            }
            Frame::Eof(Stream::Stdout | Stream::Stderr) => Ok(None),
            Frame::Credit(Stream::Stdin, bytes) => self.outbox.take_credit(*bytes).map(|()| None),
            Frame::Control(json) => self.reply(frame::parse_message(json)?),
            Frame::Eof(Stream::Stdin) | Frame::Credit(..) => Err(no_place(frame)),
        }
    }

    fn reply(&self, reply: Reply) -> Result<Option<CommandEvent>, AgentError> {
        match reply {
            Reply::Started { pid } => {
                (self.sink)(CommandEvent::Started(pid));
                Ok(None)
            }
            Reply::Exited(status) => Ok(Some(CommandEvent::Exited(status))),
            Reply::Failed(failure) => Ok(Some(CommandEvent::Failed(failure))),
            other => Err(unexpected(&other)),
        }
    }
}

fn no_place(frame: &Frame<'_>) -> AgentError {
    AgentError::Protocol(format!("{} has no place here", name(frame)))
}
