//! The host's end of vhost-vsock, for VMMs that leave vsock to the kernel: one listener for all guests, which
//! are told apart by their context ids.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::io;
use std::mem::size_of;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::ptr;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rundlet_protocol::frame::{self, Frame};
use rundlet_protocol::{READY_PORT, Ready, VERSION};
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, acceptfrom_with, bind, listen, socket_with,
};

/// Connections that may wait: all guests of a batch come at once.
const BACKLOG: i32 = 1024;

/// `VMADDR_CID_ANY`, vsock(7).
const ANY_CID: u32 = u32::MAX;

/// Time for the one message, once the connection is there.
const PATIENCE: Duration = Duration::from_secs(10);

/// `struct sockaddr_vm` of `<linux/vm_sockets.h>`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Address {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    flags: u8,
    zero: [u8; 3],
}

const _: () = assert!(size_of::<Address>() == 16);

// SAFETY: `with_sockaddr` hands out a pointer to a whole `sockaddr_vm`, with its size, for the time of the call.
unsafe impl SocketAddrArg for Address {
    unsafe fn with_sockaddr<R>(
        &self,
        f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R,
    ) -> R {
        let length = SocketAddrLen::try_from(size_of::<Self>()).unwrap_or(SocketAddrLen::MAX);
        f(ptr::from_ref(self).cast(), length)
    }
}

/// The ready port of all guests of this host. Dropped, its thread ends.
#[derive(Debug)]
pub(super) struct ReadyPort {
    socket: Arc<OwnedFd>,
    waiting: Waiting,
}

/// What an agent said, or why that was nothing.
pub(super) type Word = Result<Ready, String>;

/// Who waits for whom.
#[derive(Clone, Debug, Default)]
struct Waiting(Arc<Mutex<HashMap<u32, Sender<Word>>>>);

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Sender<Word>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReadyPort {
    pub(super) fn open() -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::VSOCK,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let address = Address {
            family: AddressFamily::VSOCK.as_raw(),
            port: READY_PORT,
            cid: ANY_CID,
            ..Address::default()
        };
        bind(&socket, &address)?;
        listen(&socket, BACKLOG)?;
        let (socket, waiting) = (Arc::new(socket), Waiting::default());
        let (ours, who) = (Arc::clone(&socket), waiting.clone());
        thread::Builder::new()
            .name("vsock".into())
            .spawn(move || serve(&ours, &who))?;
        Ok(Self { socket, waiting })
    }

    /// Where the word of the guest with this id will come out.
    pub(super) fn expect(&self, cid: u32) -> Receiver<Word> {
        let (sender, words) = mpsc::channel();
        self.waiting.lock().insert(cid, sender);
        words
    }

    pub(super) fn forget(&self, cid: u32) {
        self.waiting.lock().remove(&cid);
    }
}

impl Drop for ReadyPort {
    fn drop(&mut self) {
        // Wakes the thread in accept.
        let _ = rustix::net::shutdown(self.socket.as_fd(), rustix::net::Shutdown::Both);
    }
}

fn serve(socket: &OwnedFd, waiting: &Waiting) {
    loop {
        match acceptfrom_with(socket, SocketFlags::CLOEXEC) {
            Ok((connection, address)) => {
                let cid = address.and_then(|address| {
                    // SAFETY: the closure reads no more than the length that it is told.
                    unsafe { address.with_sockaddr(|raw, length| cid_of(raw, length)) }
                });
                let sender = cid.and_then(|cid| waiting.lock().remove(&cid));
                // A guest of somebody else's is not answered.
                if let Some(sender) = sender {
                    // Who waited may have given up. Slow guests wait for each other: each sends its one
                    // message with the connection.
                    let _ = sender.send(read(connection));
                }
            }
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {}
            Err(_) => return,
        }
    }
}

/// The peer's context id.
///
/// # Safety
/// `raw` points to `length` readable bytes.
unsafe fn cid_of(raw: *const SocketAddrOpaque, length: SocketAddrLen) -> Option<u32> {
    if usize::try_from(length).ok()? < size_of::<Address>() {
        return None;
    }
    // SAFETY: the caller vouches for that many bytes; any bytes are an `Address`.
    let address = unsafe { ptr::read_unaligned(raw.cast::<Address>()) };
    (address.family == AddressFamily::VSOCK.as_raw()).then_some(address.cid)
}

fn read(connection: OwnedFd) -> Word {
    // Any stream socket: only its reading and its timeout are used.
    let stream = UnixStream::from(connection);
    let ask = || -> Result<Ready, Box<dyn std::error::Error>> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut buffer = Vec::new();
        match frame::read(&mut &stream, &mut buffer)? {
            Some(Frame::Control(json)) => Ok(frame::parse_message(json)?),
            _ => Err("it said nothing".into()),
        }
    };
    let word = ask().map_err(|error| error.to_string());
    let _ = stream.shutdown(Shutdown::Both);
    match word {
        Ok(ready) if ready.version != VERSION => {
            Err(format!("its agent speaks version {}", ready.version))
        }
        word => word,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_says_who_it_is_and_a_short_one_nothing() {
        let address = Address {
            family: AddressFamily::VSOCK.as_raw(),
            cid: 77,
            ..Address::default()
        };
        // SAFETY: the closure reads no more than the length that it is told.
        let cids = unsafe {
            address.with_sockaddr(|raw, length| (cid_of(raw, length), cid_of(raw, length - 1)))
        };
        assert_eq!(cids, (Some(77), None));
    }

    #[test]
    fn an_agent_s_word_is_read_and_garbage_is_none() {
        let word = |send: &dyn Fn(&UnixStream)| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            send(&theirs);
            drop(theirs);
            read(ours.into())
        };
        let ready = |version| Ready {
            version,
            init_us: 1,
            ready_us: 2,
        };
        let said = word(&|mut to| frame::write_message(&mut to, &ready(VERSION)).unwrap());
        assert_eq!(said, Ok(ready(VERSION)));
        assert!(word(&|mut to| frame::write_message(&mut to, &ready(99)).unwrap()).is_err());
        assert!(word(&|_| {}).is_err());
    }
}
