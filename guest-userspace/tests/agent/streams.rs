//! Bytes both ways: none lost, none reordered, none hoarded.

use std::time::Duration;

use rundlet_protocol::frame::MAX_DATA;
use rundlet_protocol::{ExecSpec, ExitStatus, Frame, Stream, WINDOW};

use crate::client::{Agent, Client, argv, is_alive, sh, wait_until};

const MIB: usize = 1024 * 1024;

/// Bytes that tell where they belong: a xorshift sequence.
#[derive(Clone)]
struct Noise(u64);

impl Noise {
    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            let word = self.0.to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

fn with_stdin(spec: ExecSpec) -> ExecSpec {
    ExecSpec {
        stdin: true,
        ..spec
    }
}

/// Sends `total` bytes of noise through `command` and checks that they come back, both at once.
fn echo(client: &mut Client, total: usize) {
    let mut sent_noise = Noise(0x9e37_79b9_7f4a_7c15);
    let mut got_noise = sent_noise.clone();
    let (mut sent, mut got, mut credit) = (0, 0, WINDOW as usize);
    let (mut chunk, mut expected) = (vec![0; MAX_DATA], Vec::new());
    let mut pending = Vec::new();
    while got < total {
        while sent < total && credit >= MAX_DATA {
            sent_noise.fill(&mut chunk);
            client.send_frame(&Frame::Data(Stream::Stdin, &chunk));
            sent += MAX_DATA;
            credit -= MAX_DATA;
            if sent == total {
                client.send_frame(&Frame::Eof(Stream::Stdin));
            }
        }
        match client.frame().unwrap() {
            Frame::Credit(Stream::Stdin, more) => credit += more as usize,
            Frame::Data(Stream::Stdout, bytes) => {
                let count = bytes.len();
                pending.extend_from_slice(bytes);
                client.send_frame(&Frame::Credit(
                    Stream::Stdout,
                    u32::try_from(count).unwrap(),
                ));
                let whole = pending.len() / 8 * 8;
                expected.resize(whole, 0);
                got_noise.fill(&mut expected);
                assert!(pending[..whole] == expected[..], "wrong bytes near {got}");
                pending.drain(..whole);
                got += whole;
            }
            Frame::Eof(Stream::Stderr) => {}
            other => panic!("unexpected {other:?}"),
        }
    }
}

#[test]
fn sixty_four_mebibytes_come_through_both_ways() {
    let agent = Agent::start();
    let (mut client, _) = agent.start_command(with_stdin(argv(&["cat"])));
    echo(&mut client, 64 * MIB);
    let rest = client.collect();
    assert_eq!((rest.stdout.len(), rest.status), (0, ExitStatus::Code(0)));
    assert!(agent.memory_kib("VmHWM") < 8 * 1024);
}

#[test]
fn a_flood_without_a_reader_costs_no_memory_and_delays_no_other_stream() {
    let agent = Agent::start();
    let (mut client, pid) =
        agent.start_command(sh("(sleep 0.3; echo here >&2) & exec cat /dev/zero"));
    let (mut zeros, mut message) = (0_usize, Vec::new());
    while message != b"here\n" {
        match client.frame().unwrap() {
            Frame::Data(Stream::Stdout, bytes) => zeros += bytes.len(),
            Frame::Data(Stream::Stderr, bytes) => message.extend_from_slice(bytes),
            other => panic!("unexpected {other:?}"),
        }
    }
    // Not one byte beyond the window, though the program writes on.
    assert_eq!(zeros, WINDOW as usize);
    std::thread::sleep(Duration::from_millis(200));
    assert!(agent.memory_kib("VmHWM") < 8 * 1024);
    // A signal is not behind the flood either.
    client.signal(15);
    wait_until("the program has ended", || !is_alive(pid));
    // What it wrote before is still to be had, and comes before the status.
    client.send_frame(&Frame::Credit(Stream::Stdout, WINDOW));
    let outcome = client.collect();
    assert_eq!(outcome.stdout.len(), 64 * 1024, "a pipe full");
    assert_eq!(outcome.status, ExitStatus::Signal(15));
}

#[test]
fn a_host_that_reads_nothing_costs_no_memory() {
    let agent = Agent::start();
    let clients: Vec<_> = (0..8)
        .map(|_| agent.start_command(sh("exec cat /dev/zero")))
        .collect();
    std::thread::sleep(Duration::from_millis(500));
    assert!(agent.memory_kib("VmRSS") < 16 * 1024);
    drop(clients);
}

#[test]
fn a_slow_reader_loses_nothing() {
    let agent = Agent::start();
    let script = "i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done";
    let (mut client, _) = agent.start_command(sh(script));
    let expected: String = (0..20000).map(|i| format!("{i}\n")).collect();
    let mut seen = Vec::new();
    while seen.len() < expected.len() {
        let bytes = match client.frame().unwrap() {
            Frame::Data(Stream::Stdout, bytes) => bytes,
            Frame::Eof(Stream::Stderr) => continue,
            other => panic!("unexpected {other:?}"),
        };
        seen.extend_from_slice(bytes);
        let credit = u32::try_from(bytes.len()).unwrap();
        std::thread::sleep(Duration::from_millis(1));
        client.send_frame(&Frame::Credit(Stream::Stdout, credit));
    }
    assert!(seen == expected.as_bytes());
    assert_eq!(client.collect().status, ExitStatus::Code(0));
}

#[test]
fn the_last_bytes_come_before_the_status() {
    let agent = Agent::start();
    for _ in 0..50 {
        let outcome = agent.sh("head -c 60000 /dev/zero; echo end >&2; kill -9 $$");
        assert_eq!(outcome.stdout.len(), 60_000);
        assert_eq!(outcome.stderr, b"end\n");
        assert_eq!(outcome.status, ExitStatus::Signal(9));
    }
}

#[test]
fn stdin_closed_early_swallows_the_rest() {
    let agent = Agent::start();
    let script = "exec <&-; echo closed; read -r line < /dev/null; sleep 1000";
    let (mut client, pid) = agent.start_command(with_stdin(sh(script)));
    client.read_until(|seen| seen == b"closed\n");
    let (mut credit, chunk) = (WINDOW as usize, vec![7; MAX_DATA]);
    for _ in 0..(4 * MIB / MAX_DATA) {
        while credit < MAX_DATA {
            match client.frame().unwrap() {
                Frame::Credit(Stream::Stdin, more) => credit += more as usize,
                other => panic!("unexpected {other:?}"),
            }
        }
        client.send_frame(&Frame::Data(Stream::Stdin, &chunk));
        credit -= MAX_DATA;
    }
    client.send_frame(&Frame::Eof(Stream::Stdin));
    assert!(is_alive(pid));
    client.signal(9);
    assert_eq!(client.collect().status, ExitStatus::Signal(9));
}

#[test]
fn stdin_that_nobody_reads_delays_no_signal() {
    let agent = Agent::start();
    let (mut client, _) = agent.start_command(with_stdin(argv(&["sleep", "1000"])));
    for _ in 0..(WINDOW as usize / MAX_DATA) {
        client.send_frame(&Frame::Data(Stream::Stdin, &[0; MAX_DATA]));
    }
    client.signal(15);
    assert_eq!(client.collect().status, ExitStatus::Signal(15));
}

#[test]
fn a_program_that_ends_before_its_stdin_ends_normally() {
    let agent = Agent::start();
    let (mut client, _) = agent.start_command(with_stdin(argv(&["head", "-c", "1"])));
    client.send_frame(&Frame::Data(Stream::Stdin, &[65; MAX_DATA]));
    let outcome = client.collect();
    assert_eq!((outcome.text(), outcome.status), ("A", ExitStatus::Code(0)));
}

#[test]
fn a_stream_closed_early_is_told_early() {
    let agent = Agent::start();
    let (mut client, _) = agent.start_command(sh("exec >&-; sleep 1000"));
    assert_eq!(client.frame(), Some(Frame::Eof(Stream::Stdout)));
    client.signal(9);
    assert!(matches!(client.frame(), Some(Frame::Eof(Stream::Stderr))));
}

#[test]
fn a_daemon_that_keeps_the_pipes_does_not_delay_the_end() {
    let agent = Agent::start();
    let script =
        "setsid sh -c 'echo $$; exec sleep 1000' & read -r x < /dev/null; sleep 0.2; echo done";
    let outcome = agent.sh(script);
    assert_eq!(outcome.status, ExitStatus::Code(0));
    let mut lines = outcome.text().lines();
    let daemon: u32 = lines.next().unwrap().parse().unwrap();
    assert_eq!(lines.next(), Some("done"));
    // It is a daemon: it outlives its command.
    assert!(is_alive(daemon));
    std::process::Command::new("kill")
        .args(["-9", &daemon.to_string()])
        .status()
        .unwrap();
    // And is reaped by the agent, not left as a zombie.
    wait_until("the daemon is reaped", || {
        std::fs::metadata(format!("/proc/{daemon}")).is_err()
    });
}

#[test]
fn a_daemon_that_floods_the_pipes_does_not_delay_the_end() {
    let agent = Agent::start();
    let outcome = agent.sh("setsid sh -c 'exec yes' & echo $! >&2; sleep 0.1");
    assert_eq!(outcome.status, ExitStatus::Code(0));
    let daemon: u32 = String::from_utf8(outcome.stderr)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    // Its next write finds no reader.
    wait_until("the flood ends", || !is_alive(daemon));
}
