use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use rundlet_protocol::frame::{self, Frame};
use rundlet_protocol::{ExecSpec, ExitStatus, FailureKind, Reply, Request, Stream, VERSION};
use serde_json::json;

use super::fixture::{Served, answer, eventually};

/// An upgraded connection, on which nothing was said yet.
fn upgraded(served: &Served, id: &str) -> UnixStream {
    let path = format!("/v1/sandboxes/{id}/exec/stream");
    let head = ["Connection: Upgrade", "Upgrade: rundlet-agent/2"];
    let mut stream = served.send("POST", &path, &head, "");
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        text.extend(byte);
    }
    let text = String::from_utf8(text).unwrap();
    assert!(text.starts_with("HTTP/1.1 101 "), "{text}");
    stream
}

fn say(stream: &UnixStream, request: &Request) {
    frame::write_message(&mut &*stream, request).unwrap();
}

fn begin(stream: &UnixStream, script: &str, stdin: bool) {
    say(stream, &Request::Hello { version: VERSION });
    say(
        stream,
        &Request::Exec(ExecSpec {
            argv: ["sh", "-c", script].map(str::to_owned).into(),
            env: [("OWN".to_owned(), "own".to_owned())].into(),
            stdin,
            ..ExecSpec::default()
        }),
    );
}

/// Everything up to the last message: stdout, and that message.
fn hear(stream: &UnixStream) -> (String, Option<Reply>) {
    let (mut out, mut buffer) = (Vec::new(), Vec::new());
    loop {
        match frame::read(&mut &*stream, &mut buffer) {
            Ok(Some(Frame::Data(Stream::Stdout, bytes))) => {
                out.extend_from_slice(bytes);
                let credit = u32::try_from(bytes.len()).unwrap();
                // Perhaps the last of it, and nobody reads any more.
                let _ = Frame::Credit(Stream::Stdout, credit).write(&mut &*stream);
            }
            Ok(Some(Frame::Control(json))) => {
                let reply = frame::parse_message(json).unwrap();
                if matches!(reply, Reply::Exited(_) | Reply::Failed(_)) {
                    return (String::from_utf8(out).unwrap(), Some(reply));
                }
            }
            Ok(Some(_)) => {}
            _ => return (String::from_utf8(out).unwrap(), None),
        }
    }
}

fn commands(served: &Served, id: &str) -> u64 {
    let detail = served.get(&format!("/v1/sandboxes/{id}")).json();
    detail["commands"].as_u64().unwrap()
}

fn sandbox(served: &Served, auto_remove: bool) -> String {
    let env = json!({"OWN": "the sandbox's", "THEIRS": "theirs"});
    let wish = json!({"source": {"image": "img"}, "env": env, "auto_remove": auto_remove});
    let made = served.post("/v1/sandboxes", &wish).json();
    made["id"].as_str().unwrap().to_owned()
}

#[test]
fn a_command_has_its_streams_and_the_sandbox_s_environment() {
    let served = Served::new();
    let id = sandbox(&served, false);
    let stream = upgraded(&served, &id);
    begin(&stream, "echo $OWN $THEIRS; cat; exit 3", true);
    Frame::Data(Stream::Stdin, b"typed\n")
        .write(&mut &stream)
        .unwrap();
    Frame::Eof(Stream::Stdin).write(&mut &stream).unwrap();
    let (out, last) = hear(&stream);
    assert_eq!(out, "own theirs\ntyped\n");
    assert_eq!(last, Some(Reply::Exited(ExitStatus::Code(3))));
    // The connection ends by itself after the last message.
    let mut rest = Vec::new();
    (&stream).read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty(), "{rest:?}");
    eventually("no command is left", || commands(&served, &id) == 0);
}

#[test]
fn a_client_that_goes_takes_its_command_along() {
    let served = Served::new();
    for half in [true, false] {
        let id = sandbox(&served, false);
        let stream = upgraded(&served, &id);
        let mark = served.path(&format!("mark-{half}"));
        begin(
            &stream,
            &format!("echo up; sleep 1000; touch {}", mark.display()),
            false,
        );
        let mut buffer = Vec::new();
        while !matches!(
            frame::read(&mut &stream, &mut buffer).unwrap(),
            Some(Frame::Data(Stream::Stdout, b"up\n"))
        ) {}
        assert_eq!(commands(&served, &id), 1);
        if half {
            stream.shutdown(Shutdown::Write).unwrap();
            // What is left to say is said.
            hear(&stream);
        } else {
            drop(stream);
        }
        eventually("no command is left", || commands(&served, &id) == 0);
        assert!(!mark.exists());
    }
}

#[test]
fn a_stream_is_good_for_a_command_and_nothing_else() {
    let served = Served::new();
    let id = sandbox(&served, false);
    for (requests, words) in [
        (
            vec![Request::Hello { version: VERSION }, Request::Shutdown],
            "an exec",
        ),
        (
            vec![Request::Hello { version: VERSION }, Request::Prepare {}],
            "an exec",
        ),
        (vec![Request::Shutdown], "a hello"),
    ] {
        let stream = upgraded(&served, &id);
        for request in &requests {
            say(&stream, request);
        }
        let mut replies = Vec::new();
        let mut buffer = Vec::new();
        while let Ok(Some(Frame::Control(json))) = frame::read(&mut &stream, &mut buffer) {
            replies.push(frame::parse_message::<Reply>(json).unwrap());
        }
        let Some(Reply::Failed(failure)) = replies.last() else {
            panic!("{requests:?}: {replies:?}");
        };
        assert_eq!(failure.kind, FailureKind::Protocol);
        assert!(failure.message.contains(words), "{failure:?}");
    }
    // A frame that would be too long is not waited for.
    let stream = upgraded(&served, &id);
    (&stream)
        .write_all(&[1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff])
        .unwrap();
    assert!(matches!(hear(&stream).1, Some(Reply::Failed(_))));
    eventually("no command is left", || commands(&served, &id) == 0);
    assert_eq!(served.sandboxes().len(), 1, "the sandbox lives");
}

#[test]
fn a_sandbox_for_one_command_goes_with_it() {
    let served = Served::new();
    let id = sandbox(&served, true);
    let stream = upgraded(&served, &id);
    begin(&stream, "exit 0", false);
    hear(&stream);
    eventually("it is gone", || served.sandboxes().is_empty());
    // And with a client that never asks for one.
    let id = sandbox(&served, true);
    drop(upgraded(&served, &id));
    eventually("it is gone", || served.sandboxes().is_empty());
}

#[test]
fn a_reader_that_does_not_read_is_not_read_ahead_for() {
    let served = Served::new();
    let id = sandbox(&served, false);
    let stream = upgraded(&served, &id);
    begin(
        &stream,
        "yes | head -c 20000000 | tee /dev/stderr | wc -c >&2",
        false,
    );
    let (out, last) = {
        std::thread::sleep(std::time::Duration::from_millis(200));
        drop(stream);
        let again = upgraded(&served, &id);
        begin(&again, "echo next", false);
        hear(&again)
    };
    assert_eq!(out, "next\n");
    assert!(matches!(last, Some(Reply::Exited(_))));
    eventually("no command is left", || commands(&served, &id) == 0);
}

#[test]
fn a_console_is_followed_until_the_sandbox_ends() {
    let served = Served::new();
    let id = served.create(&json!({}));
    let path = |rest: &str| format!("/v1/sandboxes/{id}{rest}");
    assert_eq!(
        served.get(&path("/logs")).body,
        "Linux version 6.12 (double)\n"
    );
    let head = ["Connection: close"];
    let followed = served.send("GET", &path("/logs?follow=true"), &head, "");
    let waited = served.send("GET", &path("/wait"), &head, "");
    let file = served.path(&format!("node/s/{id}/console.log"));
    let mut file = std::fs::OpenOptions::new().append(true).open(file).unwrap();
    file.write_all(b"more\n").unwrap();
    assert_eq!(served.ask("POST", &path("/kill"), &[], "").status, 204);
    assert!(answer(followed).body.ends_with("(double)\nmore\n"));
    let waited = answer(waited).json();
    assert_eq!(waited, json!({"id": id, "phase": "stopped"}));
}
