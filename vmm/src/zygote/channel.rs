//! The zygote's end of its socket: datagrams with descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::fork;

/// The longest request: a spec whose every text is as long as it may be fits well.
pub const MAX_REQUEST_BYTES: usize = 64 * 1024;
/// Descriptors that one request may bring.
pub const MAX_DESCRIPTORS: usize = 5;

/// A datagram as it came.
#[derive(Debug)]
pub struct Datagram {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What came with them, in order.
    pub descriptors: Vec<OwnedFd>,
}

/// What there was to receive.
#[derive(Debug)]
pub enum Received {
    /// A datagram.
    Datagram(Datagram),
    /// A datagram that is longer, or brings more, than is taken; what came of it is gone.
    TooMuch(String),
    /// Nothing yet.
    Nothing,
    /// The other side is gone.
    Closed,
}

/// How sending went.
#[derive(Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is on its way.
    Yes,
    /// No room; wait until the socket can be written to.
    Full,
    /// The kernel cannot take it now, and will not say when it can; try again in a while.
    Later,
    /// The other side is gone.
    Closed,
}

/// A connected socket of type seqpacket.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl Channel {
    /// Takes over the socket that this process was started with under `number`.
    pub fn adopt(number: i32) -> io::Result<Self> {
        fork::adopt_socket(number).map(Self::from)
    }

    /// Receives one datagram, without waiting.
    pub fn receive(&mut self) -> io::Result<Received> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let got = recvmsg(
            &self.socket,
            &mut [IoSliceMut::new(&mut self.buffer)],
            &mut control,
            flags,
        );
        let got = match got {
            Ok(got) => got,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(Received::Nothing),
            Err(Errno::CONNRESET) => return Ok(Received::Closed),
            Err(error) => return Err(error.into()),
        };
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        if got.flags.contains(ReturnFlags::TRUNC) {
            return Ok(Received::TooMuch(format!(
                "a request has at most {MAX_REQUEST_BYTES} bytes"
            )));
        }
        // The kernel may find room for one more than asked for, and drops the others without a word
        // but this flag.
        if got.flags.contains(ReturnFlags::CTRUNC) || descriptors.len() > MAX_DESCRIPTORS {
            return Ok(Received::TooMuch(format!(
                "a request brings at most {MAX_DESCRIPTORS} descriptors"
            )));
        }
        let bytes = self.buffer.get(..got.bytes).unwrap_or_default().to_owned();
        Ok(Received::Datagram(Datagram { bytes, descriptors }))
    }

    /// Sends one datagram, without waiting.
    pub fn send(&self, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<Sent> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let rights = descriptor.as_slice();
        if !rights.is_empty() && !control.push(SendAncillaryMessage::ScmRights(rights)) {
            return Err(io::Error::other("no room for a descriptor"));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, flags) {
            Ok(_) => Ok(Sent::Yes),
            Err(Errno::AGAIN) => Ok(Sent::Full),
            // Memory is short, or too many descriptors are under way (unix(7)).
            Err(Errno::INTR | Errno::NOBUFS | Errno::NOMEM | Errno::TOOMANYREFS) => Ok(Sent::Later),
            Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => Ok(Sent::Closed),
            Err(error) => Err(error.into()),
        }
    }
}

impl From<OwnedFd> for Channel {
    fn from(socket: OwnedFd) -> Self {
        Self {
            socket,
            buffer: vec![0; MAX_REQUEST_BYTES],
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests;
