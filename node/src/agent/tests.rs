//! The client against agents written here, over a socket pair.

use std::io::{Cursor, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rundlet_protocol::frame::{self, Frame, MAX_DATA};
use rundlet_protocol::{ExecSpec, ExitStatus, Reply, Request, VERSION, WINDOW};

use super::*;

const SOON: Duration = Duration::from_secs(10);

/// The agent's end of a connection.
struct Peer {
    stream: UnixStream,
    buffer: Vec<u8>,
}

impl Peer {
    fn request(&mut self) -> Request {
        match frame::read(&mut self.stream, &mut self.buffer)
            .unwrap()
            .unwrap()
        {
            Frame::Control(json) => frame::parse_message(json).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn reply(&mut self, reply: &Reply) {
        frame::write_message(&mut self.stream, reply).unwrap();
    }

    fn send(&mut self, frame: &Frame<'_>) {
        frame.write(&mut self.stream).unwrap();
    }
}

/// Runs `agent` behind a greeting that agrees.
fn with_agent(agent: impl FnOnce(Peer) + Send + 'static) -> Connection {
    let (ours, theirs) = UnixStream::pair().unwrap();
    thread::spawn(move || {
        let mut peer = Peer {
            stream: theirs,
            buffer: Vec::new(),
        };
        assert_eq!(peer.request(), Request::Hello { version: VERSION });
        peer.reply(&Reply::Hello { version: VERSION });
        agent(peer);
    });
    Connection::greet(ours).unwrap()
}

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A reader of stdout who never reads.
struct Stuck(Receiver<()>);

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn exec(
    connection: Connection,
    stdin: Option<Vec<u8>>,
    stdout: impl Write + Send + 'static,
    stderr: impl Write + Send + 'static,
) -> (Command, Receiver<CommandEvent>) {
    let (events, received) = mpsc::channel();
    let spec = ExecSpec {
        argv: vec!["anything".into()],
        stdin: stdin.is_some(),
        ..ExecSpec::default()
    };
    let streams = Streams {
        stdin: stdin.map(|bytes| Box::new(Cursor::new(bytes)) as Box<dyn Read + Send>),
        stdout: Box::new(stdout),
        stderr: Box::new(stderr),
    };
    let command = connection
        .exec(spec, streams, move |event| {
            let _ = events.send(event);
        })
        .unwrap();
    (command, received)
}

fn next(events: &Receiver<CommandEvent>) -> CommandEvent {
    events.recv_timeout(SOON).unwrap()
}

#[test]
fn a_command_comes_back_with_both_streams_and_its_code() {
    let connection = with_agent(|mut peer| {
        assert!(matches!(peer.request(), Request::Exec(spec) if spec.argv == ["anything"]));
        peer.reply(&Reply::Started { pid: 7 });
        peer.send(&Frame::Data(Stream::Stdout, b"out"));
        peer.send(&Frame::Data(Stream::Stderr, b"err"));
        peer.send(&Frame::Eof(Stream::Stdout));
        peer.send(&Frame::Eof(Stream::Stderr));
        peer.reply(&Reply::Exited(ExitStatus::Code(3)));
    });
    let (out, err) = (Sink::default(), Sink::default());
    let (_command, events) = exec(connection, None, out.clone(), err.clone());
    assert!(matches!(next(&events), CommandEvent::Started(7)));
    assert!(matches!(next(&events), CommandEvent::FirstOutput));
    assert!(matches!(
        next(&events),
        CommandEvent::Exited(ExitStatus::Code(3))
    ));
    assert_eq!(*out.0.lock().unwrap(), b"out");
    assert_eq!(*err.0.lock().unwrap(), b"err");
}

#[test]
fn an_echo_of_many_windows_is_lossless() {
    let connection = with_agent(|mut peer| {
        peer.request();
        peer.reply(&Reply::Started { pid: 7 });
        let mut room = u64::from(WINDOW);
        let mut waiting = Vec::new();
        let mut ended = false;
        while !ended || !waiting.is_empty() {
            let count = waiting
                .len()
                .min(MAX_DATA)
                .min(usize::try_from(room).unwrap());
            if count > 0 {
                let chunk: Vec<u8> = waiting.drain(..count).collect();
                room -= count as u64;
                peer.send(&Frame::Data(Stream::Stdout, &chunk));
                let credit = u32::try_from(count).unwrap();
                peer.send(&Frame::Credit(Stream::Stdin, credit));
                continue;
            }
            match frame::read(&mut peer.stream, &mut peer.buffer)
                .unwrap()
                .unwrap()
            {
                Frame::Data(Stream::Stdin, bytes) => waiting.extend_from_slice(bytes),
                Frame::Eof(Stream::Stdin) => ended = true,
                Frame::Credit(Stream::Stdout, bytes) => room += u64::from(bytes),
                other => panic!("{other:?}"),
            }
        }
        peer.reply(&Reply::Exited(ExitStatus::Code(0)));
    });
    let bytes: Vec<u8> = (0_u32..2_000_000).flat_map(u32::to_le_bytes).collect();
    let out = Sink::default();
    let (_command, events) = exec(connection, Some(bytes.clone()), out.clone(), io::sink());
    let last = events.iter().last();
    assert!(matches!(
        last,
        Some(CommandEvent::Exited(ExitStatus::Code(0)))
    ));
    assert!(*out.0.lock().unwrap() == bytes);
}

#[test]
fn a_stuck_stdout_delays_neither_stderr_nor_a_signal() {
    let (told, tell) = mpsc::channel();
    let connection = with_agent(move |mut peer| {
        peer.request();
        peer.reply(&Reply::Started { pid: 7 });
        for _ in 0..4 {
            peer.send(&Frame::Data(Stream::Stdout, &[0; MAX_DATA]));
        }
        peer.send(&Frame::Data(Stream::Stderr, b"still here"));
        told.send(peer.request()).unwrap();
        peer.reply(&Reply::Exited(ExitStatus::Signal(15)));
    });
    let (release, stuck) = mpsc::channel();
    let err = Sink::default();
    let (command, events) = exec(connection, None, Stuck(stuck), err.clone());
    command.signal(15).unwrap();
    assert_eq!(
        tell.recv_timeout(SOON).unwrap(),
        Request::Signal { signal: 15 }
    );
    while err.0.lock().unwrap().is_empty() {
        thread::yield_now();
    }
    drop(release);
    let last = events.iter().last();
    assert!(matches!(
        last,
        Some(CommandEvent::Exited(ExitStatus::Signal(15)))
    ));
}

#[test]
fn a_guest_that_floods_beyond_its_window_is_cut_off() {
    let (release, stuck) = mpsc::channel();
    let connection = with_agent(|mut peer| {
        peer.request();
        for _ in 0..5 {
            peer.send(&Frame::Data(Stream::Stdout, &[0; MAX_DATA]));
        }
        // Not closed from here: the client has to end this by itself.
        assert!(matches!(peer.stream.read(&mut [0]), Ok(0) | Err(_)));
        drop(release);
    });
    let (_command, events) = exec(connection, None, Stuck(stuck), io::sink());
    assert!(matches!(next(&events), CommandEvent::FirstOutput));
    assert!(matches!(
        next(&events),
        CommandEvent::Lost(AgentError::Protocol(_))
    ));
}

#[test]
fn bytes_that_are_no_frames_and_a_vanished_guest_are_losses() {
    let garbage = with_agent(|mut peer| {
        peer.request();
        peer.stream.write_all(&[0xff; 64]).unwrap();
    });
    let (_command, events) = exec(garbage, None, io::sink(), io::sink());
    assert!(matches!(
        next(&events),
        CommandEvent::Lost(AgentError::Frame(FrameError::Kind(0xff)))
    ));
    let gone = with_agent(|mut peer| drop(peer.request()));
    let (_command, events) = exec(gone, None, io::sink(), io::sink());
    assert!(matches!(
        next(&events),
        CommandEvent::Lost(AgentError::Closed)
    ));
}

#[test]
fn a_full_disk_behind_stdout_is_reported_and_the_command_goes_on() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::Error::from(io::ErrorKind::StorageFull))
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let connection = with_agent(|mut peer| {
        peer.request();
        for _ in 0..16 {
            peer.send(&Frame::Data(Stream::Stdout, &[0; 16 * 1024]));
        }
        peer.reply(&Reply::Exited(ExitStatus::Code(0)));
    });
    let (_command, events) = exec(connection, None, Full, io::sink());
    assert!(matches!(next(&events), CommandEvent::FirstOutput));
    assert!(matches!(
        next(&events),
        CommandEvent::OutputClosed(Stream::Stdout, _)
    ));
    assert!(matches!(
        next(&events),
        CommandEvent::Exited(ExitStatus::Code(0))
    ));
}

#[test]
fn another_version_is_refused_with_what_to_do() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut peer = Peer {
        stream: theirs,
        buffer: Vec::new(),
    };
    peer.reply(&Reply::Hello { version: 99 });
    let error = Connection::greet(ours).unwrap_err();
    assert!(error.to_string().contains("99"), "{error}");
    assert!(error.to_string().contains("initrd.cpio"), "{error}");
}

#[test]
fn dialling_reads_the_answer_and_not_a_byte_more() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vsock.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let vmm = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut line = [0; 13];
        stream.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"CONNECT 1024\n");
        // The agent's greeting in the same segment as the VMM's answer.
        let mut bytes = b"OK 1073741824\n".to_vec();
        frame::write_message(&mut bytes, &Reply::Hello { version: VERSION }).unwrap();
        stream.write_all(&bytes).unwrap();
        let (mut second, _) = listener.accept().unwrap();
        second.read_exact(&mut line).unwrap();
        second.write_all(b"ERR no\n").unwrap();
    });
    let agent = Agent::new(path);
    agent.dial().unwrap();
    assert!(matches!(agent.dial(), Err(AgentError::Refused { answer }) if answer == "ERR no"));
    vmm.join().unwrap();
}

#[test]
fn a_guest_that_is_slow_to_run_is_dialled_again_and_one_that_refuses_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vsock.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let vmm = thread::spawn(move || {
        let mut line = [0; 13];
        let (mut late, _) = listener.accept().unwrap();
        // Read to its end, and closed when the VMM's patience is at an end.
        late.read_exact(&mut line).unwrap();
        thread::sleep(NO_REFUSAL);
        drop(late);
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_exact(&mut line).unwrap();
        let mut bytes = b"OK 1\n".to_vec();
        frame::write_message(&mut bytes, &Reply::Hello { version: VERSION }).unwrap();
        stream.write_all(&bytes).unwrap();
        drop(listener.accept().unwrap());
    });
    let agent = Agent::new(path);
    agent.dial().unwrap();
    assert!(matches!(agent.dial(), Err(AgentError::NoAgent(_))));
    vmm.join().unwrap();
}
