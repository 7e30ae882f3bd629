//! Host end of the agent's protocol: reaches the agent through the VMM's vsock socket and runs one
//! command with its streams.
//!
//! The guest is hostile. It may send anything at any speed or stop reading: what is kept for it here
//! is bounded by the protocol's windows, and no caller of [`Command`] ever blocks on it.

mod command;
mod outbox;
mod output;
#[cfg(test)]
mod tests;

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use rundlet_protocol::frame::{self, Frame, FrameError, Stream};
use rundlet_protocol::{AGENT_PORT, Failure, Reply, Request, VERSION};

pub use command::{Command, CommandEvent, Streams};

/// How long the guest may take for one step of the greeting.
const GREETING: Duration = Duration::from_secs(10);

/// Longest answer to `CONNECT`: `OK 4294967295\n` is 14 bytes.
const MAX_ANSWER: usize = 32;

/// Why talking to the agent failed.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("cannot connect to the sandbox's vsock socket {}", path.display())]
    Connect { path: PathBuf, source: io::Error },
    #[error("the guest does not answer on vsock port {AGENT_PORT}")]
    NoAgent(#[source] io::Error),
    #[error("the VMM refused the connection to vsock port {AGENT_PORT}: it said {answer:?}")]
    Refused { answer: String },
    #[error("the connection to the agent broke")]
    Frame(#[from] FrameError),
    #[error("the agent closed the connection")]
    Closed,
    #[error(
        "the agent speaks version {theirs} of the protocol, this program {VERSION}; use the initrd.cpio that was built with it"
    )]
    Version { theirs: u32 },
    #[error("the agent refused: {}", .0.message)]
    Failed(Failure),
    #[error("the agent broke the protocol: {0}")]
    Protocol(String),
    #[error("too many requests wait for the guest, which does not read them")]
    Backlog,
    #[error("cannot start a thread for the connection to the agent")]
    Thread(#[source] io::Error),
}

/// Where a sandbox's agent is reached.
#[derive(Clone, Debug)]
pub struct Agent {
    socket: PathBuf,
}

/// A greeted connection: good for one command, or for the shutdown of the machine.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
}

impl Agent {
    /// `socket` is the VMM's vsock socket.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Connects through the VMM and exchanges versions.
    ///
    /// # Errors
    /// The socket, the VMM or the agent does not answer, or speaks another version.
    pub fn dial(&self) -> Result<Connection, AgentError> {
        let stream = UnixStream::connect(&self.socket).map_err(|source| AgentError::Connect {
            path: self.socket.clone(),
            source,
        })?;
        limit(&stream, Some(GREETING))?;
        (&stream)
            .write_all(format!("CONNECT {AGENT_PORT}\n").as_bytes())
            .map_err(AgentError::NoAgent)?;
        let answer = read_answer(&stream)?;
        if !answer.starts_with("OK ") {
            return Err(AgentError::Refused { answer });
        }
        Connection::greet(stream)
    }
}

impl Connection {
    /// Exchanges versions on a stream that already leads to the agent.
    ///
    /// # Errors
    /// The agent does not answer in time, or speaks another version.
    pub fn greet(stream: UnixStream) -> Result<Self, AgentError> {
        limit(&stream, Some(GREETING))?;
        frame::write_message(&mut &stream, &Request::Hello { version: VERSION })?;
        match read_reply(&stream)? {
            Reply::Hello { version } if version == VERSION => {}
            Reply::Hello { version } => return Err(AgentError::Version { theirs: version }),
            Reply::Failed(failure) => return Err(AgentError::Failed(failure)),
            other => return Err(unexpected(&other)),
        }
        limit(&stream, None)?;
        Ok(Self { stream })
    }

    /// Asks the guest to power off; returns once it has begun to.
    ///
    /// # Errors
    /// The agent does not answer or refuses.
    pub fn shutdown(self) -> Result<(), AgentError> {
        limit(&self.stream, Some(GREETING))?;
        frame::write_message(&mut &self.stream, &Request::Shutdown)?;
        match read_reply(&self.stream)? {
            Reply::ShuttingDown => Ok(()),
            Reply::Failed(failure) => Err(AgentError::Failed(failure)),
            other => Err(unexpected(&other)),
        }
    }
}

fn limit(stream: &UnixStream, time: Option<Duration>) -> Result<(), AgentError> {
    stream
        .set_read_timeout(time)
        .and_then(|()| stream.set_write_timeout(time))
        .map_err(AgentError::NoAgent)
}

/// The VMM's one line. Read byte by byte: what follows it belongs to the agent.
fn read_answer(mut stream: &UnixStream) -> Result<String, AgentError> {
    let mut line = Vec::with_capacity(MAX_ANSWER);
    let mut byte = [0];
    while line.len() < MAX_ANSWER {
        stream.read_exact(&mut byte).map_err(AgentError::NoAgent)?;
        if byte == *b"\n" {
            break;
        }
        line.extend_from_slice(&byte);
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

fn read_reply(mut stream: &UnixStream) -> Result<Reply, AgentError> {
    let mut buffer = Vec::new();
    match frame::read(&mut stream, &mut buffer)? {
        Some(Frame::Control(json)) => Ok(frame::parse_message(json)?),
        Some(other) => Err(AgentError::Protocol(format!(
            "expected a reply, got {}",
            name(&other)
        ))),
        None => Err(AgentError::Closed),
    }
}

fn unexpected(reply: &Reply) -> AgentError {
    AgentError::Protocol(format!("reply {reply:?} has no place here"))
}

/// What a frame is, without its bytes.
fn name(frame: &Frame<'_>) -> String {
    match frame {
        Frame::Control(_) => "a control frame".into(),
        Frame::Data(stream, bytes) => format!("{} bytes of {stream:?}", bytes.len()),
        Frame::Eof(stream) => format!("the end of {stream:?}"),
        Frame::Credit(stream, _) => format!("credit for {stream:?}"),
    }
}
