//! The control socket: one JSON request a line, one JSON reply a line.
//!
//! Served on the main thread between device events, so a pause is complete when its reply is written.
//! Whoever may connect may stop the sandbox: the socket is made with mode 0600.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::events::{EventSet, Registrar, Subscriber};
use crate::lock::lock;
use crate::outcome::{Outcome, with_causes};
use crate::spec::Binding;
use crate::template::capture::{Captured, Draft, Subject};
use crate::vcpu::thread::{ThreadError, Vcpus};
use crate::wire::{self, Reply, Request};

/// Connections at a time; more wait in the backlog.
const CONNECTIONS: usize = 8;
/// The longest request line: room for a capture with every label it may have.
const LINE: usize = 16 * 1024;
const LISTENER: u32 = 0;

/// The socket and its connections.
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
    listener: UnixListener,
    vcpus: Arc<Mutex<Vcpus>>,
    capture: Option<Subject>,
    /// The devices have been taken from the guest for good.
    spent: bool,
    events: Option<Registrar>,
    connections: BTreeMap<u32, Connection>,
    next: u32,
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    line: Vec<u8>,
}

impl Control {
    /// Binds the socket. A left-over socket at the path that nobody listens on is replaced.
    pub fn bind(path: &Path, vcpus: Arc<Mutex<Vcpus>>) -> io::Result<Self> {
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_dead(path) => {
                std::fs::remove_file(path)?;
                UnixListener::bind(path)
            }
            other => other,
        }?;
        listener.set_nonblocking(true)?;
        let control = Self {
            path: path.to_owned(),
            listener,
            vcpus,
            capture: None,
            spent: false,
            events: None,
            connections: BTreeMap::new(),
            next: LISTENER + 1,
        };
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o600))?;
        Ok(control)
    }

    /// Has it take captures, too.
    #[must_use]
    pub fn with_capture(mut self, subject: Subject) -> Self {
        self.capture = Some(subject);
        self
    }

    /// Starts listening.
    pub fn attach(&mut self, events: Registrar) -> io::Result<()> {
        events.add(&self.listener, LISTENER, EventSet::IN)?;
        self.events = Some(events);
        Ok(())
    }

    fn accept(&mut self) -> io::Result<()> {
        let Some(events) = &self.events else {
            return Ok(());
        };
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        stream.set_nonblocking(true)?;
        let token = self.next;
        self.next = self.next.checked_add(1).unwrap_or(LISTENER + 1);
        events.add(&stream, token, EventSet::IN | EventSet::READ_HANG_UP)?;
        self.connections.insert(
            token,
            Connection {
                stream,
                line: Vec::new(),
            },
        );
        if self.connections.len() >= CONNECTIONS {
            events.modify(&self.listener, LISTENER, EventSet::empty())?;
        }
        Ok(())
    }

    fn serve(&mut self, token: u32) -> ControlFlow<Outcome> {
        let Some(mut connection) = self.connections.remove(&token) else {
            return ControlFlow::Continue(());
        };
        if connection.fill().is_err() {
            self.forget(&connection);
            return ControlFlow::Continue(());
        }
        while let Some(line) = connection.next_line() {
            let reply = match Request::parse(&line) {
                Ok(request) => self.handle(request),
                Err(error) => Reply::Error {
                    message: error.to_string(),
                },
            };
            connection.say(&reply);
            if reply == (Reply::Stopping {}) {
                return ControlFlow::Break(Outcome::Stopped);
            }
        }
        if connection.line.len() > LINE {
            connection.say(&Reply::Error {
                message: format!("a request has at most {LINE} bytes"),
            });
            self.forget(&connection);
        } else {
            self.connections.insert(token, connection);
        }
        ControlFlow::Continue(())
    }

    fn forget(&self, connection: &Connection) {
        let Some(events) = &self.events else { return };
        let gone = events
            .remove(&connection.stream)
            .and_then(|()| events.modify(&self.listener, LISTENER, EventSet::IN));
        if let Err(error) = gone {
            log::warn!("control socket: {error}");
        }
    }

    fn handle(&mut self, request: Request) -> Reply {
        let mut vcpus = lock(&self.vcpus);
        let done = |result: Result<(), ThreadError>, reply| match result {
            Ok(()) => reply,
            Err(error) => Reply::Error {
                message: with_causes(&error),
            },
        };
        match request {
            Request::Pause {} => done(vcpus.pause(), Reply::Paused {}),
            Request::Resume {} | Request::Capture(_) if self.spent => Reply::Error {
                message: "the sandbox was captured; it can only be stopped".to_owned(),
            },
            Request::Resume {} => done(vcpus.resume(), Reply::Resumed {}),
            Request::Status {} => Reply::Status {
                state: if vcpus.paused() { "paused" } else { "running" },
                vcpus: vcpus.count(),
            },
            Request::Stop {} => Reply::Stopping {},
            Request::Touched(request) => {
                match self
                    .capture
                    .as_ref()
                    .map(|it| it.touched(&request.directory, request.by))
                {
                    Some(Ok((pages, written))) => Reply::Touched { pages, written },
                    Some(Err(error)) => Reply::Error {
                        message: format!("touched: {error}"),
                    },
                    None => Reply::Error {
                        message: "this sandbox cannot tell what it touches".to_owned(),
                    },
                }
            }
            Request::Capture(request) => {
                let Some(subject) = &self.capture else {
                    let message = "this sandbox cannot be captured".to_owned();
                    return Reply::Error { message };
                };
                match capture(subject, &mut vcpus, request, &mut self.spent) {
                    Ok(Captured {
                        memory_bytes,
                        window_bytes,
                    }) => Reply::Captured {
                        memory_bytes,
                        window_bytes,
                    },
                    Err(message) => Reply::Error { message },
                }
            }
        }
    }
}

/// Pauses the vCPUs and makes a template. `spent` is set when there is no way back.
fn capture(
    subject: &Subject,
    vcpus: &mut Vcpus,
    request: wire::Capture,
    spent: &mut bool,
) -> Result<Captured, String> {
    let wire::Capture { directory, binding } = request;
    let binding = Binding::try_from(binding).map_err(|error| error.to_string())?;
    if !directory.is_absolute() {
        return Err("capture.directory: must be an absolute path".to_owned());
    }
    let draft = Draft::create(&directory).map_err(|error| with_causes(&error))?;
    vcpus.pause().map_err(|error| with_causes(&error))?;
    *spent = true;
    let captured = subject.capture(vcpus, draft, &binding);
    captured.map_err(|error| with_causes(&error))
}

impl Drop for Control {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

impl Subscriber for Control {
    fn ready(&mut self, token: u32, _: EventSet) -> ControlFlow<Outcome> {
        if token != LISTENER {
            return self.serve(token);
        }
        if let Err(error) = self.accept() {
            log::warn!("control socket: {error}");
        }
        ControlFlow::Continue(())
    }
}

impl Connection {
    /// Cuts one complete line off what was read.
    fn next_line(&mut self) -> Option<Vec<u8>> {
        let end = self.line.iter().position(|&byte| byte == b'\n')?;
        let rest = self.line.split_off(end + 1);
        let mut line = std::mem::replace(&mut self.line, rest);
        line.pop();
        Some(line)
    }

    /// Reads once; an error means that the connection is over. What is left comes with the next event.
    fn fill(&mut self) -> io::Result<()> {
        let mut chunk = [0; 4096];
        match self.stream.read(&mut chunk) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                self.line
                    .extend_from_slice(chunk.get(..count).unwrap_or_default());
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// A reply is far smaller than a socket buffer; who does not read them loses them.
    fn say(&mut self, reply: &Reply) {
        let line = reply.to_line() + "\n";
        if let Err(error) = self.stream.write_all(line.as_bytes()) {
            log::warn!("control socket: a reply is lost: {error}");
        }
    }
}

/// A socket that nobody listens on. Connecting to a plain file is refused, too, and that is not ours.
fn is_dead(path: &Path) -> bool {
    let socket = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    socket && UnixStream::connect(path).err().is_some_and(refused)
}

#[cfg(test)]
mod tests;
