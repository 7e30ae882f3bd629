//! The port on which the guest's agent reports ready: one connection with one message.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rundlet_protocol::frame::{self, Frame};
use rundlet_protocol::{Ready, VERSION};

use super::{Event, Sink, StartError};
use crate::agent::Until;
use crate::error::chain;

/// Time for the one message, once the connection is there.
const PATIENCE: Duration = Duration::from_secs(10);

/// Listens until the first connection; the socket file is the run directory's to remove.
#[derive(Debug)]
pub(super) struct ReadyListener {
    listener: Arc<UnixListener>,
}

impl ReadyListener {
    pub(super) fn start(path: &Path, events: &Sink) -> Result<Self, StartError> {
        let error = |source| StartError::Listen {
            path: path.to_path_buf(),
            source,
        };
        let listener = Arc::new(UnixListener::bind(path).map_err(error)?);
        let (ours, events) = (Arc::clone(&listener), Arc::clone(events));
        thread::Builder::new()
            .name("ready".into())
            .spawn(move || wait(&ours, &events))
            .map_err(error)?;
        Ok(Self { listener })
    }
}

impl Drop for ReadyListener {
    fn drop(&mut self) {
        // Wakes the thread in accept; it may be gone already.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
    }
}

fn wait(listener: &UnixListener, events: &Sink) {
    let Ok((stream, _)) = listener.accept() else {
        return;
    };
    events(match hear(&stream, Instant::now() + PATIENCE) {
        Ok(ready) => Event::Ready(ready),
        Err(why) => Event::NotReady(why),
    });
    // The agent does not wait for more.
    let _ = stream.shutdown(Shutdown::Both);
}

/// The one message of a connection to the ready port; why it is not an agent's of ours.
pub(crate) fn hear(stream: &UnixStream, deadline: Instant) -> Result<Ready, String> {
    match read(Until { stream, deadline }) {
        Ok(ready) if ready.version == VERSION => Ok(ready),
        Ok(ready) => Err(format!(
            "its agent speaks version {} of the protocol, this program {VERSION}; use the initrd.cpio that was built with it",
            ready.version
        )),
        Err(error) => Err(format!("its word was not understood: {}", chain(&error))),
    }
}

fn read(mut stream: Until<'_>) -> io::Result<Ready> {
    let mut buffer = Vec::new();
    let message = match frame::read(&mut stream, &mut buffer) {
        Ok(Some(Frame::Control(json))) => frame::parse_message(json),
        Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
        Err(error) => Err(error),
    };
    message.map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn told(send: impl FnOnce(UnixStream)) -> Event {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ready");
        let (sender, events) = mpsc::channel();
        let sink: Sink = Arc::new(move |event| sender.send(event).unwrap());
        let _listener = ReadyListener::start(&path, &sink).unwrap();
        send(UnixStream::connect(&path).unwrap());
        events.recv_timeout(Duration::from_secs(5)).unwrap()
    }

    fn ready(version: u32) -> Ready {
        Ready {
            version,
            init_us: 1,
            ready_us: 2,
        }
    }

    #[test]
    fn the_agent_s_word_is_passed_on() {
        let event = told(|mut to| frame::write_message(&mut to, &ready(VERSION)).unwrap());
        assert!(matches!(event, Event::Ready(it) if it == ready(VERSION)));
    }

    #[test]
    fn garbage_silence_and_another_version_are_not_ready() {
        let event = told(|mut to| frame::write_message(&mut to, &ready(99)).unwrap());
        assert!(matches!(event, Event::NotReady(why) if why.contains("99")));
        let event = told(|mut to| io::Write::write_all(&mut to, &[0xff; 100]).unwrap());
        assert!(matches!(event, Event::NotReady(_)));
        assert!(matches!(told(drop), Event::NotReady(_)));
    }

    #[test]
    fn it_ends_when_nobody_comes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ready");
        let sink: Sink = Arc::new(|event| panic!("{event:?}"));
        let listener = ReadyListener::start(&path, &sink).unwrap();
        let shared = Arc::downgrade(&listener.listener);
        drop(listener);
        let began = std::time::Instant::now();
        while shared.strong_count() > 0 {
            assert!(began.elapsed() < Duration::from_secs(5));
            thread::yield_now();
        }
    }
}
