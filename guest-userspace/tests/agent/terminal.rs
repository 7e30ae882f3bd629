//! Commands on a terminal.

use rundlet_protocol::{ExecSpec, ExitStatus, Frame, Request, Stream, TtySize};

use crate::client::{Agent, argv, is_alive, sh, wait_until};

fn on_terminal(spec: ExecSpec) -> ExecSpec {
    let size = TtySize {
        rows: 33,
        columns: 101,
    };
    ExecSpec {
        tty: Some(size),
        stdin: true,
        ..spec
    }
}

#[test]
fn a_terminal_has_the_size_and_is_the_controlling_one() {
    let script = "stty size < /dev/tty; tty; test -t 0 && test -t 1 && test -t 2 && echo $TERM; \
                  ps -o tpgid=,pgid= -p $$";
    let outcome = Agent::start().run(on_terminal(sh(script)));
    let lines: Vec<_> = outcome.text().lines().collect();
    assert_eq!(lines[0], "33 101");
    assert!(lines[1].starts_with("/dev/pts/"), "{lines:?}");
    assert_eq!(lines[2], "xterm");
    let mut groups = lines[3].split_ascii_whitespace();
    assert_eq!(groups.next(), groups.next());
    assert_eq!(outcome.status, ExitStatus::Code(0));
}

#[test]
fn a_resize_reaches_the_program() {
    let agent = Agent::start();
    let script = "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.01; done";
    let (mut client, _) = agent.start_command(on_terminal(sh(script)));
    client.read_until(|seen| seen == b"ready\r\n");
    client.send(&Request::Resize {
        rows: 50,
        columns: 132,
    });
    assert_eq!(client.collect().text(), "50 132\r\n");
}

#[test]
fn keys_are_echoed_and_control_c_interrupts() {
    let agent = Agent::start();
    let (mut client, _) = agent.start_command(on_terminal(argv(&["cat"])));
    client.send_frame(&Frame::Data(Stream::Stdin, b"hello\n"));
    client.read_until(|seen| seen == b"hello\r\nhello\r\n");
    client.send_frame(&Frame::Data(Stream::Stdin, &[3]));
    let outcome = client.collect();
    assert_eq!(
        (outcome.text(), outcome.status),
        ("^C", ExitStatus::Signal(2))
    );
}

#[test]
fn the_end_of_stdin_is_the_end_for_a_program_that_reads_lines() {
    let agent = Agent::start();
    let (mut client, _) = agent.start_command(on_terminal(argv(&["wc", "-l"])));
    client.send_frame(&Frame::Data(Stream::Stdin, b"one\ntwo\n"));
    client.send_frame(&Frame::Eof(Stream::Stdin));
    let outcome = client.collect();
    assert!(outcome.text().ends_with("2\r\n"), "{outcome:?}");
    assert_eq!(outcome.status, ExitStatus::Code(0));
}

#[test]
fn everything_written_to_a_terminal_comes_before_the_status() {
    let agent = Agent::start();
    for _ in 0..20 {
        let outcome = agent.run(on_terminal(sh(
            "i=0; while [ $i -lt 3000 ]; do echo $i; i=$((i+1)); done",
        )));
        let expected: String = (0..3000).map(|i| format!("{i}\r\n")).collect();
        assert!(outcome.text() == expected, "{} bytes", outcome.stdout.len());
    }
}

#[test]
fn a_program_that_closes_its_terminal_is_not_over() {
    let agent = Agent::start();
    let script = "exec < /dev/null > /dev/null 2>&1; sleep 0.2; echo back > /dev/tty; exit 4";
    let outcome = agent.run(on_terminal(sh(script)));
    assert_eq!(
        (outcome.text(), outcome.status),
        ("back\r\n", ExitStatus::Code(4))
    );
}

#[test]
fn a_background_program_on_the_terminal_does_not_delay_the_end() {
    let agent = Agent::start();
    let outcome = agent.run(on_terminal(sh("setsid sleep 1000 & echo $!; sleep 0.1")));
    assert_eq!(outcome.status, ExitStatus::Code(0));
    let daemon = outcome.text().trim().to_owned();
    agent.run(argv(&["kill", "-9", &daemon]));
}

#[test]
fn a_disconnect_ends_the_programs_of_a_terminal() {
    let agent = Agent::start();
    let (mut client, pid) =
        agent.start_command(on_terminal(sh("trap '' HUP; echo on; sleep 1000")));
    client.read_until(|seen| seen == b"on\r\n");
    drop(client);
    wait_until("the command has ended", || !is_alive(pid));
}

#[test]
fn a_terminal_belongs_to_its_user() {
    let spec = ExecSpec {
        user: Some("nobody".into()),
        ..on_terminal(sh("stat -c %U $(tty); echo opened > $(tty)"))
    };
    let outcome = Agent::start().run(spec);
    assert_eq!(outcome.text(), "nobody\r\nopened\r\n");
}
