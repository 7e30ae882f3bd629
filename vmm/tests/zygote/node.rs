//! The node's end: starts a zygote, sends requests, hears answers.

use std::ffi::OsStr;
use std::io::{IoSlice, IoSliceMut, PipeReader, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
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
    /// Starts a zygote: the program with the arguments and, last, 3, the number of its socket.
    pub(crate) fn start(program: impl AsRef<OsStr>, arguments: &[&str]) -> Self {
        Self::start_after("", program, arguments)
    }

    /// The same, after the shell has done something.
    pub(crate) fn start_after(
        something: &str,
        program: impl AsRef<OsStr>,
        arguments: &[&str],
    ) -> Self {
        let (socket, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        // A descriptor that is inherited by this program and no other, whatever else starts just now.
        let zygote = Command::new("sh")
            .args([
                "-c",
                &format!("{something}\nexec \"$@\" 3<&0 </dev/null"),
                "sh",
            ])
            .arg(program)
            .args(arguments)
            .arg("3")
            .stdin(theirs)
            .stdout(Stdio::piped())
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

    /// Asks for a clone.
    pub(crate) fn ask(&self, id: &str, spec: &Value, fds: &[(&str, &dyn AsFd)]) {
        let names: Vec<&str> = fds.iter().map(|(name, _)| *name).collect();
        let fds: Vec<_> = fds.iter().map(|(_, fd)| fd.as_fd()).collect();
        self.send(&request(id, spec, &names), &fds).unwrap();
    }

    /// Asks for a sandbox that boots.
    pub(crate) fn ask_boot(&self, id: &str, spec: &Value, fds: &[(&str, &dyn AsFd)]) {
        let names: Vec<&str> = fds.iter().map(|(name, _)| *name).collect();
        let fds: Vec<_> = fds.iter().map(|(_, fd)| fd.as_fd()).collect();
        let request = json!({"boot": {"id": id, "spec": spec, "fds": names}});
        self.send(&serde_json::to_vec(&request).unwrap(), &fds)
            .unwrap();
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
    pub(crate) fn clone(
        &self,
        id: &str,
        spec: &Value,
        fds: &[(&str, &dyn AsFd)],
    ) -> (i32, OwnedFd) {
        self.ask(id, spec, fds);
        self.hear_cloned(id)
    }

    /// Hears that a sandbox is there: its process and pidfd.
    pub(crate) fn hear_cloned(&self, id: &str) -> (i32, OwnedFd) {
        let (answer, pidfd) = self.hear();
        assert_eq!(answer["cloned"]["id"], id, "{answer}");
        let pid = i32::try_from(answer["cloned"]["pid"].as_i64().unwrap()).unwrap();
        (pid, pidfd.expect("a pidfd"))
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
pub(crate) fn request(id: &str, spec: &Value, names: &[&str]) -> Vec<u8> {
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
