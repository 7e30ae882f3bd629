//! Against VMMs and agents written here, on a socket as the VMM has it.

use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::{self, JoinHandle};

use rundlet_protocol::{Entropy, Failure, FailureKind, Frame};
use tempfile::TempDir;

use std::io::{Read, Write};

use super::super::{AgentError, NO_REFUSAL};
use super::*;

/// Longer than any test takes.
const PATIENCE: Duration = Duration::from_secs(30);

fn renewal() -> Renewal {
    Renewal {
        entropy: Entropy(vec![7; 64]),
        realtime_ns: 1,
        hostname: "box".into(),
        machine_id: "0123456789abcdef0123456789abcdef".into(),
        boot_id: "01234567-89ab-4def-8123-456789abcdef".into(),
    }
}

/// A VMM whose guest is `guest`. The directory goes with the test.
fn machine(guest: impl FnOnce(UnixStream) + Send + 'static) -> (TempDir, Agent, JoinHandle<()>) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vsock.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let guest = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut line = [0; 13];
        stream.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"CONNECT 1024\n");
        guest(stream);
    });
    (directory, Agent::new(path), guest)
}

fn request(stream: &mut UnixStream) -> Request {
    let mut buffer = Vec::new();
    match frame::read(stream, &mut buffer).unwrap() {
        Some(Frame::Control(json)) => frame::parse_message(json).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// The guest has heard everything before it says anything.
fn answers(replies: Vec<Reply>) -> impl FnOnce(UnixStream) + Send + 'static {
    move |mut stream| {
        assert_eq!(request(&mut stream), Request::Hello { version: VERSION });
        match request(&mut stream) {
            Request::Prepare {} => {}
            Request::Renew(got) => assert_eq!(got, renewal()),
            other => panic!("{other:?}"),
        }
        stream.write_all(b"OK 1073741824\n").unwrap();
        for reply in replies {
            frame::write_message(&mut stream, &reply).unwrap();
        }
    }
}

const HELLO: Reply = Reply::Hello { version: VERSION };

#[test]
fn a_guest_is_prepared_and_a_clone_renewed() {
    let deadline = Instant::now() + PATIENCE;
    let (_directory, agent, guest) = machine(answers(vec![HELLO, Reply::Prepared {}]));
    agent.prepare(deadline).unwrap();
    guest.join().unwrap();
    let (_directory, agent, guest) =
        machine(answers(vec![HELLO, Reply::Renewed { took_us: 1500 }]));
    let took = agent.renew(&renewal(), deadline).unwrap();
    assert_eq!(took, Duration::from_micros(1500));
    guest.join().unwrap();
}

#[test]
fn a_field_that_cannot_be_used_is_named_and_nothing_is_sent() {
    let agent = Agent::new("/does/not/exist".into());
    let wrong = Renewal {
        hostname: String::new(),
        ..renewal()
    };
    let error = agent.renew(&wrong, Instant::now() + PATIENCE).unwrap_err();
    assert!(matches!(error, AgentError::Renewal(_)), "{error:?}");
    let error = agent.renew(&renewal(), Instant::now()).unwrap_err();
    assert!(matches!(error, AgentError::Connect { .. }), "{error:?}");
}

#[test]
fn what_the_guest_refuses_is_passed_on() {
    let failure = Failure {
        kind: FailureKind::State,
        message: "command 7 was not started with `keep`".into(),
    };
    let (_directory, agent, guest) = machine(answers(vec![HELLO, Reply::Failed(failure.clone())]));
    let error = agent.prepare(Instant::now() + PATIENCE).unwrap_err();
    assert!(matches!(&error, AgentError::Failed(got) if *got == failure));
    assert!(error.to_string().contains("command 7"), "{error}");
    guest.join().unwrap();
}

#[test]
fn another_version_and_another_answer_are_errors() {
    let deadline = Instant::now() + PATIENCE;
    let (_directory, agent, guest) = machine(answers(vec![Reply::Hello { version: 99 }]));
    let error = agent.renew(&renewal(), deadline).unwrap_err();
    assert!(matches!(error, AgentError::Version { theirs: 99 }));
    guest.join().unwrap();
    let (_directory, agent, guest) = machine(answers(vec![HELLO, Reply::Prepared {}]));
    let error = agent.renew(&renewal(), deadline).unwrap_err();
    assert!(matches!(error, AgentError::Protocol(_)), "{error:?}");
    guest.join().unwrap();
    let (_directory, agent, guest) = machine(|mut stream| stream.write_all(b"NO\n").unwrap());
    let error = agent.prepare(deadline).unwrap_err();
    assert!(matches!(error, AgentError::Refused { .. }), "{error:?}");
    guest.join().unwrap();
}

#[test]
fn a_silent_and_a_dripping_guest_are_late() {
    let (_directory, agent, guest) = machine(|mut stream| {
        // Until the host has given up.
        while stream.read(&mut [0; 512]).is_ok_and(|count| count > 0) {}
    });
    let limit = Duration::from_millis(50);
    let error = agent.renew(&renewal(), Instant::now() + limit).unwrap_err();
    assert!(
        matches!(error, AgentError::Late { request: "renew" }),
        "{error:?}"
    );
    assert!(error.to_string().contains("`renew`"), "{error}");
    guest.join().unwrap();

    let (_directory, agent, guest) = machine(|mut stream| {
        let mut bytes = b"OK 1\n".to_vec();
        frame::write_message(&mut bytes, &HELLO).unwrap();
        stream.write_all(&bytes).unwrap();
        let reply = serde_json::to_vec(&Reply::Prepared {}).unwrap();
        // A frame whose bytes come in time each, and never all.
        let head = [1, 0, 0, 0, 0xff, 0, 0, 0];
        for byte in head.iter().chain(reply.iter().cycle()) {
            thread::sleep(Duration::from_millis(5));
            if stream.write_all(&[*byte]).is_err() {
                break;
            }
        }
    });
    let error = agent.prepare(Instant::now() + limit).unwrap_err();
    assert!(
        matches!(error, AgentError::Late { request: "prepare" }),
        "{error:?}"
    );
    guest.join().unwrap();
}

#[test]
fn a_guest_that_is_slow_to_run_is_asked_again_and_one_that_refuses_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vsock.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let vmm = thread::spawn(move || {
        // Closed unread, as the VMM's end is when its patience is at an end.
        let late = listener.accept().unwrap();
        thread::sleep(NO_REFUSAL);
        drop(late);
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_exact(&mut [0; 13]).unwrap();
        answers(vec![HELLO, Reply::Prepared {}])(stream);
        drop(listener.accept().unwrap());
        drop(listener);
    });
    let agent = Agent::new(path);
    agent.prepare(Instant::now() + PATIENCE).unwrap();
    let error = agent.prepare(Instant::now() + PATIENCE).unwrap_err();
    assert!(matches!(error, AgentError::NoAgent(_)), "{error:?}");
    vmm.join().unwrap();
}
