//! The guest's name, its loopback interface, and the sockets between host and agent.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};

use rundlet_protocol::{AGENT_PORT, HOST_CID, READY_PORT};
use rustix::io::Errno;
use rustix::net::{bind, connect, listen};

use crate::sys::{self, VsockAddr};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// `VMADDR_CID_ANY`, vsock(7).
const ANY_CID: u32 = u32::MAX;

#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    #[error("cannot set the hostname `{name}`")]
    Hostname {
        name: String,
        #[source]
        error: io::Error,
    },
    #[error("cannot bring up the loopback interface")]
    Loopback(#[source] io::Error),
    #[error("cannot listen on vsock port {AGENT_PORT}")]
    Vsock(#[source] io::Error),
    #[error("cannot use socket {path}")]
    Unix {
        path: String,
        #[source]
        error: io::Error,
    },
}

pub(crate) fn set_up(hostname: &str) -> Result<(), NetworkError> {
    rustix::system::sethostname(hostname.as_bytes()).map_err(|error| NetworkError::Hostname {
        name: hostname.to_owned(),
        error: error.into(),
    })?;
    sys::loopback_up().map_err(NetworkError::Loopback)
}

/// The agent's port.
pub(crate) fn listen_vsock() -> Result<OwnedFd, NetworkError> {
    let attempt = || {
        let socket = sys::vsock_socket()?;
        let address = VsockAddr {
            cid: ANY_CID,
            port: AGENT_PORT,
        };
        bind(&socket, &address)?;
        listen(&socket, BACKLOG)?;
        Ok(socket)
    };
    attempt().map_err(NetworkError::Vsock)
}

/// Begins to connect to the host's ready port.
pub(crate) fn dial_host() -> io::Result<OwnedFd> {
    let socket = sys::vsock_socket()?;
    let address = VsockAddr {
        cid: HOST_CID,
        port: READY_PORT,
    };
    match connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

pub(crate) fn listen_unix(path: &str) -> Result<OwnedFd, NetworkError> {
    let attempt = || {
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(listener.into())
    };
    attempt().map_err(|error| NetworkError::Unix {
        path: path.to_owned(),
        error,
    })
}

pub(crate) fn dial_unix(path: &str) -> Result<OwnedFd, NetworkError> {
    let stream = UnixStream::connect(path).map_err(|error| NetworkError::Unix {
        path: path.to_owned(),
        error,
    })?;
    Ok(stream.into())
}
