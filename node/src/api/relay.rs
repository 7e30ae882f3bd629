//! Between a client and an agent: the first message is looked at, the rest are bytes.
//!
//! Looked at, so that a client can do nothing but run a command, and the sandbox's environment is under the command's
//! own. Back-pressure is the sockets' own: what one side does not read is not read from the other.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use rundlet_protocol::frame::{self, Frame, FrameError, HEADER, MAX_CONTROL};
use rundlet_protocol::{Failure, FailureKind, Reply, Request};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

/// How long a client may take to say what it wants.
const OPENING: Duration = Duration::from_secs(30);

/// How long one side may take to end after the other.
const FAREWELL: Duration = Duration::from_secs(10);

/// Bytes on their way, each way.
const BUFFER: usize = 64 * 1024;

/// Carries one command's connection to its end.
pub(super) async fn run(
    client: impl AsyncRead + AsyncWrite + Unpin,
    agent: UnixStream,
    env: BTreeMap<String, String>,
) {
    let (mut client_says, mut client_hears) = tokio::io::split(client);
    let (mut agent_says, mut agent_hears) = agent.into_split();
    let up = async {
        let opened = tokio::time::timeout(OPENING, open(&mut client_says, &mut agent_hears, env));
        match opened.await {
            Ok(Ok(())) => {}
            Ok(Err(refusal)) => return Some(refusal),
            Err(_) => return Some(Refusal::late()),
        }
        copy(&mut client_says, &mut agent_hears).await;
        // The agent takes the end of our sending half as the end of the command.
        let _ = agent_hears.shutdown().await;
        None
    };
    let down = copy(&mut agent_says, &mut client_hears);
    let mut up = std::pin::pin!(up);
    let refusal = {
        let mut down = std::pin::pin!(down);
        tokio::select! {
            () = &mut down => None,
            refusal = &mut up => match refusal {
                None => {
                    let _ = tokio::time::timeout(FAREWELL, &mut down).await;
                    return;
                }
                refusal => refusal,
            },
        }
    };
    if let Some(refusal) = refusal {
        // A client that has gone does not need it.
        let _ = client_hears.write_all(&refusal.0).await;
        let _ = client_hears.shutdown().await;
        return;
    }
    // All was said. What the client has sent meanwhile is read, so that its end is none of an error.
    let _ = client_hears.shutdown().await;
    let _ = tokio::time::timeout(FAREWELL, up).await;
}

/// Until the end of `from`, or until one of them breaks.
async fn copy(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) {
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(count) => count,
        };
        let bytes = buffer.get(..count).unwrap_or_default();
        if to.write_all(bytes).await.is_err() {
            return;
        }
    }
}

/// Bytes for a client that wants what it cannot have.
struct Refusal(Vec<u8>);

impl Refusal {
    fn new(message: impl Into<String>) -> Self {
        let reply = Reply::Failed(Failure {
            kind: FailureKind::Protocol,
            message: message.into(),
        });
        let mut bytes = Vec::new();
        // A short message always fits.
        let _ = frame::write_message(&mut bytes, &reply);
        Self(bytes)
    }

    fn late() -> Self {
        Self::new(format!("no exec came within {} seconds", OPENING.as_secs()))
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::new(format!("the connection failed: {error}"))
    }
}

impl From<FrameError> for Refusal {
    fn from(error: FrameError) -> Self {
        Self::new(crate::error::chain(&error))
    }
}

/// Passes the hello and the wish for a command on.
async fn open(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    env: BTreeMap<String, String>,
) -> Result<(), Refusal> {
    let hello = control(from).await?;
    match frame::parse_message(&hello)? {
        Request::Hello { .. } => to.write_all(&encode(&hello)?).await?,
        _ => return Err(Refusal::new("the first message is a hello")),
    }
    let message = control(from).await?;
    let Request::Exec(mut spec) = frame::parse_message(&message)? else {
        return Err(Refusal::new(
            "the second message is an exec; nothing else can be asked for here",
        ));
    };
    for (name, value) in env {
        spec.env.entry(name).or_insert(value);
    }
    let mut bytes = Vec::new();
    frame::write_message(&mut bytes, &Request::Exec(spec))?;
    to.write_all(&bytes).await?;
    Ok(())
}

/// One control message.
async fn control(from: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, Refusal> {
    let mut bytes = vec![0; HEADER];
    from.read_exact(&mut bytes).await?;
    // Checks kind and length before the payload is made room for.
    frame::decode(&bytes)?;
    let length = bytes
        .last_chunk::<4>()
        .map_or(0, |it| u32::from_le_bytes(*it));
    let length = usize::try_from(length).unwrap_or(MAX_CONTROL);
    bytes.resize(HEADER + length, 0);
    from.read_exact(bytes.get_mut(HEADER..).unwrap_or_default())
        .await?;
    match frame::decode(&bytes)? {
        Some((Frame::Control(message), _)) => Ok(message.to_vec()),
        _ => Err(Refusal::new("a hello and an exec come first")),
    }
}

fn encode(message: &[u8]) -> Result<Vec<u8>, FrameError> {
    let mut bytes = Vec::new();
    Frame::Control(message).encode(&mut bytes)?;
    Ok(bytes)
}
