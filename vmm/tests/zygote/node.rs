//! The node's end: starts a zygote, sends requests, hears answers.

use std::io::{IoSlice, IoSliceMut, PipeReader, PipeWriter, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde_json::{Value, json};

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Node {
    pub(crate) socket: OwnedFd,
    pub(crate) zygote: Child,
}

impl Node {
    /// With a zygote that has said it is ready.
    pub(crate) fn start() -> Self {
        let node = Self::start_as("--zygote", |program| program);
        assert_eq!(node.hear().0, json!({"ready": {}}));
        node
    }

    pub(crate) fn start_as(role: &str, wrap: impl FnOnce(Command) -> Command) -> Self {
        let (socket, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        fcntl_setfd(&theirs, FdFlags::empty()).unwrap();
        let mut program = Command::new(std::env::current_exe().unwrap());
        program.args([role, &theirs.as_raw_fd().to_string()]);
        let zygote = wrap(program)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { socket, zygote }
    }

    pub(crate) fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, flags).map(|_| ())
    }

    /// Asks for a clone that shall do `act`.
    pub(crate) fn ask(&self, id: &str, act: &str, fds: &[(&str, &dyn AsFd)]) {
        let names: Vec<&str> = fds.iter().map(|(name, _)| *name).collect();
        let fds: Vec<_> = fds.iter().map(|(_, fd)| fd.as_fd()).collect();
        self.send(&request(id, act, &names), &fds).unwrap();
    }

    /// The next answer, which must come in time.
    pub(crate) fn hear(&self) -> (Value, Option<OwnedFd>) {
        assert!(is_ready(&self.socket, PATIENCE), "no answer");
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let got = recvmsg(
            &self.socket,
            &mut parts,
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        );
        let count = got.unwrap().bytes;
        assert_ne!(count, 0, "the zygote has closed its socket");
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        assert!(descriptors.len() <= 1);
        (
            serde_json::from_slice(&bytes[..count]).unwrap(),
            descriptors.pop(),
        )
    }

    /// Asks for a clone, and hears that it is there: its process and pidfd.
    pub(crate) fn clone(&self, id: &str, act: &str, fds: &[(&str, &dyn AsFd)]) -> (i32, OwnedFd) {
        self.ask(id, act, fds);
        let (answer, pidfd) = self.hear();
        assert_eq!(answer["cloned"]["id"], id, "{answer}");
        let pid = i32::try_from(answer["cloned"]["pid"].as_i64().unwrap()).unwrap();
        (pid, pidfd.expect("a pidfd"))
    }

    /// Has a clone do something, and returns what it wrote to its standard output.
    pub(crate) fn output_of(&self, act: &str) -> String {
        let (reader, writer) = std::io::pipe().unwrap();
        self.clone("output", act, &[("stdout", &writer)]);
        drop(writer);
        let text = read(reader);
        assert_eq!(self.hear().0["ended"]["code"], 0, "{text}");
        text
    }

    pub(crate) fn refusal(&self) -> Value {
        let (answer, pidfd) = self.hear();
        assert!(pidfd.is_none());
        assert!(answer["refused"].is_object(), "{answer}");
        answer["refused"].clone()
    }

    /// Closes the socket and returns the zygote's exit code.
    pub(crate) fn close(self) -> Option<i32> {
        let Self { socket, mut zygote } = self;
        drop(socket);
        let begin = std::time::Instant::now();
        loop {
            if let Some(status) = zygote.try_wait().unwrap() {
                return status.code();
            }
            assert!(begin.elapsed() < PATIENCE, "the zygote stays");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// How many descriptors the zygote has open.
    pub(crate) fn descriptors(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.zygote.id());
        std::fs::read_dir(folder).unwrap().count()
    }
}

/// A request's text.
pub(crate) fn request(id: &str, act: &str, names: &[&str]) -> Vec<u8> {
    let spec = json!({"binding": {"act": act}});
    let request = json!({"clone": {"id": id, "spec": spec, "fds": names}});
    serde_json::to_vec(&request).unwrap()
}

pub(crate) fn is_ready(fd: &impl AsFd, patience: Duration) -> bool {
    let timeout = Timespec::try_from(patience).unwrap();
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    poll(&mut fds, Some(&timeout)).unwrap() == 1
}

pub(crate) fn read(mut pipe: PipeReader) -> String {
    let mut text = String::new();
    pipe.read_to_string(&mut text).unwrap();
    text
}

/// A lifeline: what a clone is given, and what keeps it alive.
pub(crate) fn lifeline() -> (PipeReader, PipeWriter) {
    std::io::pipe().unwrap()
}
