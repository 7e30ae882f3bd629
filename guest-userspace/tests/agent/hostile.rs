//! Bytes that are no frames, and frames in the wrong place: one clear failure, and the agent lives.

use rundlet_protocol::frame::{MAX_CONTROL, MAX_DATA};
use rundlet_protocol::{
    ExecSpec, ExitStatus, FailureKind, Frame, Request, Stream, TtySize, VERSION, WINDOW,
};

use crate::client::{Agent, Client, argv, is_alive, wait_until};

/// What a host must not do.
type Offence = fn(&mut Client);

#[track_caller]
fn refused(client: &mut Client, says: &str) {
    let failure = client.failure();
    assert_eq!(failure.kind, FailureKind::Protocol, "{failure:?}");
    assert!(failure.message.contains(says), "{failure:?}");
}

#[test]
fn another_version_is_refused() {
    let agent = Agent::start();
    let mut client = agent.connect();
    client.send(&Request::Hello {
        version: VERSION + 1,
    });
    let failure = client.failure();
    assert_eq!(failure.kind, FailureKind::Version);
    assert!(failure.message.contains(&(VERSION + 1).to_string()));
}

#[test]
fn bytes_that_are_no_frame_are_refused() {
    let agent = Agent::start();
    for (bytes, says) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], "unknown frame kind 71"),
        (&[2, 9, 0, 0, 0, 0, 0, 0], "unknown stream 9"),
        (&[1, 0, 0, 1, 0, 0, 0, 0], "reserved"),
        (&[1, 0, 0, 0, 255, 255, 255, 255], "at most 1048576"),
        (&[4, 0, 0, 0, 1, 0, 0, 0, 0], "credit frame"),
        (&[1, 0, 0, 0, 2, 0, 0, 0, b'{', b'x'], "not understood"),
    ] {
        let mut client = agent.connect();
        client.send_bytes(bytes);
        refused(&mut client, says);
    }
    assert_eq!(agent.run(argv(&["true"])).status, ExitStatus::Code(0));
}

#[test]
fn requests_in_the_wrong_place_are_refused() {
    let agent = Agent::start();
    let exec = Request::Exec(argv(&["true"]));
    let mut client = agent.connect();
    client.send(&exec);
    refused(&mut client, "before hello");
    for (request, says) in [
        (Request::Hello { version: VERSION }, "second hello"),
        (Request::Signal { signal: 9 }, "before a command"),
        (
            Request::Resize {
                rows: 1,
                columns: 1,
            },
            "before a command",
        ),
    ] {
        let mut client = agent.greet();
        client.send(&request);
        refused(&mut client, says);
    }
    let mut client = agent.greet();
    client.send_frame(&Frame::Data(Stream::Stdin, b"early"));
    refused(&mut client, "before a command");
}

#[test]
fn an_offence_kills_the_command() {
    let agent = Agent::start();
    let offences: [(Offence, &str); 8] = [
        (
            |c| c.send(&Request::Exec(argv(&["true"]))),
            "second command",
        ),
        (|c| c.signal(0), "1 to 64"),
        (|c| c.signal(65), "1 to 64"),
        (|c| c.signal(-1), "1 to 64"),
        (
            |c| c.send_frame(&Frame::Data(Stream::Stdin, b"x")),
            "asked for none",
        ),
        (
            |c| c.send_frame(&Frame::Data(Stream::Stdout, b"x")),
            "other direction",
        ),
        (
            |c| c.send_frame(&Frame::Credit(Stream::Stdout, 1)),
            "never sent",
        ),
        (
            |c| c.send_frame(&Frame::Credit(Stream::Stdin, 1)),
            "other direction",
        ),
    ];
    for (offend, says) in offences {
        let (mut client, pid) = agent.start_command(argv(&["sleep", "1000"]));
        offend(&mut client);
        refused(&mut client, says);
        wait_until("the command is dead", || !is_alive(pid));
    }
}

#[test]
fn stdin_beyond_its_credit_or_its_end_is_refused() {
    let agent = Agent::start();
    let spec = ExecSpec {
        stdin: true,
        ..argv(&["sleep", "1000"])
    };
    let (mut client, _) = agent.start_command(spec.clone());
    for _ in 0..(WINDOW as usize / MAX_DATA) {
        client.send_frame(&Frame::Data(Stream::Stdin, &[0; MAX_DATA]));
    }
    // The pipe took some of it, but less than the portion in which credit is given back, or the
    // agent said so.
    client.send_frame(&Frame::Data(Stream::Stdin, &[0; MAX_DATA]));
    client.send_frame(&Frame::Data(Stream::Stdin, &[0; MAX_DATA]));
    refused(&mut client, "beyond its credit");

    let (mut client, _) = agent.start_command(spec);
    client.send_frame(&Frame::Eof(Stream::Stdin));
    client.send_frame(&Frame::Data(Stream::Stdin, b"more"));
    refused(&mut client, "its end");
}

#[test]
fn a_long_request_in_small_pieces_is_one_request() {
    let agent = Agent::start();
    let mut client = agent.greet();
    let argument = "y".repeat(100_000);
    let mut spec = argv(&["sh", "-c", "printf %s \"$1$2$3$4$5$6\" | wc -c", "sh"]);
    spec.argv.extend(std::iter::repeat_n(argument, 6));
    let mut bytes = Vec::new();
    rundlet_protocol::frame::write_message(&mut bytes, &Request::Exec(spec)).unwrap();
    assert!(bytes.len() < MAX_CONTROL);
    for piece in bytes.chunks(10_007) {
        client.send_bytes(piece);
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert!(matches!(
        client.reply(),
        rundlet_protocol::Reply::Started { .. }
    ));
    assert_eq!(client.collect().text(), "600000\n");
}

#[test]
fn random_bytes_never_end_the_agent() {
    let agent = Agent::start();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..300 {
        let mut client = agent.greet();
        if round % 3 == 0 {
            let spec = ExecSpec {
                stdin: true,
                tty: (round % 2 == 0).then_some(TtySize {
                    rows: 2,
                    columns: 2,
                }),
                ..argv(&["cat"])
            };
            client.send(&Request::Exec(spec));
        }
        let mut bytes: Vec<u8> = (0..next() % 200)
            .flat_map(|_| next().to_le_bytes())
            .collect();
        if let (Some(kind), true) = (bytes.first_mut(), round % 2 == 0) {
            // Half of them begin as a frame might.
            *kind = *kind % 4 + 1;
        }
        // The agent may close before it has all.
        let _ = std::io::Write::write_all(&mut client.stream(), &bytes);
    }
    assert_eq!(agent.run(argv(&["true"])).status, ExitStatus::Code(0));
    wait_until("every session is over", || agent.open_files() < 12);
}
