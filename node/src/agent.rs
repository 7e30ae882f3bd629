//! Host end of the agent's protocol: reaches the agent through the VMM's vsock socket and runs one
//! command with its streams.
//!
//! The guest is hostile. It may send anything at any speed or stop reading: what is kept for it here
//! is bounded by the protocol's windows, and no caller of [`Command`] ever blocks on it.

mod command;
mod outbox;
mod output;
mod renew;
#[cfg(test)]
mod tests;
mod until;

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rundlet_protocol::frame::{self, Frame, FrameError, Stream};
use rundlet_protocol::{AGENT_PORT, Failure, RenewalError, Reply, Request, VERSION};

use rustix::net::sockopt::socket_peercred;

pub use command::{Command, CommandEvent, Streams};
pub(crate) use until::Until;

/// How long the guest may take for one step of the greeting. It is a millisecond's work; a host on which hundreds of
/// guests have been told something at once may be slow to get to it.
const GREETING: Duration = Duration::from_secs(60);

/// A guest that refuses does so at once; a close that comes later is the VMM's own patience at its end
/// (ten seconds), and on a host where hundreds start at once the guest may still come.
const NO_REFUSAL: Duration = Duration::from_millis(if cfg!(test) { 1000 } else { 5000 });

/// Longest answer to `CONNECT`: `OK 4294967295\n` is 14 bytes.
const MAX_ANSWER: usize = 32;

/// Why talking to the agent failed.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("cannot connect to the sandbox's vsock socket {}", path.display())]
    Connect { path: PathBuf, source: io::Error },
    #[error("{} leads to another process than the sandbox's VMM, pid {pid}", path.display())]
    Stranger { path: PathBuf, pid: u32 },
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
    #[error("the agent did not answer `{request}` in time")]
    Late { request: &'static str },
    #[error("a clone cannot be renewed with this")]
    Renewal(#[from] RenewalError),
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
    /// Who has to be at the other end.
    pid: Option<u32>,
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
        Self { socket, pid: None }
    }

    /// `socket` is in a directory that the VMM, process `pid`, may write to: should its guest have taken it over,
    /// the name may lead to somebody else's socket.
    #[must_use]
    pub fn of(socket: PathBuf, pid: u32) -> Self {
        let pid = Some(pid);
        Self { socket, pid }
    }

    /// Connects through the VMM and exchanges versions.
    ///
    /// # Errors
    /// The socket, the VMM or the agent does not answer, or speaks another version.
    pub fn dial(&self) -> Result<Connection, AgentError> {
        Connection::greet(self.call()?)
    }

    /// Has the VMM connect a new stream to the agent: what is said on it next is for the agent. There is no limit
    /// of time on it any more.
    ///
    /// # Errors
    /// The VMM or the guest does not answer.
    pub(crate) fn call(&self) -> Result<UnixStream, AgentError> {
        let connect = format!("CONNECT {AGENT_PORT}\n");
        let stream = self.reach(connect.as_bytes(), Instant::now() + GREETING)?;
        limit(&stream, None)?;
        Ok(stream)
    }

    /// A connection to the agent that begins with `bytes`, the first line of which asks the VMM for it.
    fn reach(&self, bytes: &[u8], deadline: Instant) -> Result<UnixStream, AgentError> {
        loop {
            let begun = Instant::now();
            let stream = self.open()?;
            let mut timed = Until {
                stream: &stream,
                deadline,
            };
            let sent = timed.write_all(bytes).map_err(AgentError::NoAgent);
            match sent.and_then(|()| read_answer(timed)) {
                Ok(()) => return Ok(stream),
                // The VMM gave up on a guest that is slow to run, before it passed anything on.
                Err(AgentError::NoAgent(error)) if gave_up(&error, begun) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Connects to the VMM's socket and no further.
    ///
    /// # Errors
    /// There is no socket.
    fn open(&self) -> Result<UnixStream, AgentError> {
        let error = |source| AgentError::Connect {
            path: self.socket.clone(),
            source,
        };
        let stream = UnixStream::connect(&self.socket).map_err(error)?;
        if let Some(pid) = self.pid {
            // The process that listens, unix(7).
            let peer = socket_peercred(&stream).map_err(|errno| error(errno.into()))?;
            if u32::try_from(peer.pid.as_raw_pid()) != Ok(pid) {
                return Err(AgentError::Stranger {
                    path: self.socket.clone(),
                    pid,
                });
            }
        }
        Ok(stream)
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
        agree(&read_reply(&stream)?)?;
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

/// Whether a connection was closed by a VMM that has waited for its guest. Closed with words in it that nobody has
/// read it is reset, and without any it is at its end.
fn gave_up(error: &io::Error, begun: Instant) -> bool {
    let closed = matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof
    );
    closed && begun.elapsed() >= NO_REFUSAL
}

fn limit(stream: &UnixStream, time: Option<Duration>) -> Result<(), AgentError> {
    stream
        .set_read_timeout(time)
        .and_then(|()| stream.set_write_timeout(time))
        .map_err(AgentError::NoAgent)
}

/// The VMM's one line, which has to be a yes. Read byte by byte: what follows it belongs to the agent.
fn read_answer(mut stream: impl Read) -> Result<(), AgentError> {
    let mut line = Vec::with_capacity(MAX_ANSWER);
    let mut byte = [0];
    while line.len() < MAX_ANSWER {
        stream.read_exact(&mut byte).map_err(AgentError::NoAgent)?;
        if byte == *b"\n" {
            break;
        }
        line.extend_from_slice(&byte);
    }
    if line.starts_with(b"OK ") {
        return Ok(());
    }
    let answer = String::from_utf8_lossy(&line).into_owned();
    Err(AgentError::Refused { answer })
}

/// The agent's hello has to be of our version.
fn agree(reply: &Reply) -> Result<(), AgentError> {
    match reply {
        Reply::Hello { version } if *version == VERSION => Ok(()),
        Reply::Hello { version } => Err(AgentError::Version { theirs: *version }),
        Reply::Failed(failure) => Err(AgentError::Failed(failure.clone())),
        other => Err(unexpected(other)),
    }
}

fn read_reply(mut stream: impl Read) -> Result<Reply, AgentError> {
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
