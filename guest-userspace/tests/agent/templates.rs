//! Commands that outlive their connection, and a guest that stands still until it is renewed.

use std::fs;
use std::time::Duration;

use rundlet_protocol::{
    Entropy, ExecSpec, ExitStatus, FailureKind, Frame, Renewal, Reply, Request, Stream, TtySize,
};

use crate::client::{Agent, argv, cgroup_root, is_alive, sh, wait_until};

fn keep(spec: ExecSpec) -> ExecSpec {
    ExecSpec { keep: true, ..spec }
}

fn renewal() -> Renewal {
    Renewal {
        entropy: Entropy(vec![7; 64]),
        realtime_ns: 1_700_000_000_000_000_000,
        hostname: "box".into(),
        machine_id: "0123456789abcdef0123456789abcdef".into(),
        boot_id: "01234567-89ab-4def-8123-456789abcdef".into(),
    }
}

/// Sends the one request of a connection; its answer has to be the last message.
fn ask(agent: &Agent, request: &Request) -> Reply {
    let mut client = agent.greet();
    client.send(request);
    let reply = client.reply();
    assert!(client.frame().is_none(), "something after the last message");
    reply
}

fn refusal(agent: &Agent, request: &Request) -> (FailureKind, String) {
    match ask(agent, request) {
        Reply::Failed(failure) => (failure.kind, failure.message),
        other => panic!("not refused: {other:?}"),
    }
}

/// An agent that can freeze its commands; `None`, said on stderr, where there is no cgroup v2.
fn freezing_agent(test: &str) -> Option<Agent> {
    let Some(root) = cgroup_root() else {
        eprintln!("skipped: {test}: no cgroup v2 here");
        return None;
    };
    Some(Agent::start_in(Some(root)))
}

#[test]
fn a_kept_command_outlives_its_connection_and_can_be_reached() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().display();
    let script = format!("mkfifo {path}/in {path}/out; echo warm; cat {path}/in > {path}/out");
    let (mut client, pid) = agent.start_command(keep(sh(&script)));
    client.read_until(|seen| seen == b"warm\n");
    drop(client);
    let outcome = agent.sh(&format!("echo question > {path}/in & cat {path}/out"));
    assert_eq!(outcome.text(), "question\n");
    wait_until("it ends by itself", || !is_alive(pid));
}

#[test]
fn a_kept_command_writes_on_without_a_reader() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let done = directory.path().join("done");
    // More than a window and a pipe before the host has gone, and after.
    let script = format!(
        "head -c 1000000 /dev/zero; read -r x; head -c 1000000 /dev/zero; \
         head -c 1000000 /dev/zero >&2; echo $? > {}",
        done.display()
    );
    let (client, pid) = agent.start_command(ExecSpec {
        stdin: true,
        ..keep(sh(&script))
    });
    std::thread::sleep(Duration::from_millis(100));
    assert!(is_alive(pid), "stuck, since nobody gives credit");
    let files = agent.open_files();
    drop(client);
    wait_until("it has written all", || {
        fs::read_to_string(&done).is_ok_and(|text| text == "0\n")
    });
    wait_until("its session is over", || agent.open_files() < files);
    assert!(agent.memory_kib("VmHWM") < 8 * 1024);
}

#[test]
fn a_kept_command_on_a_terminal_is_not_hung_up() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let done = directory.path().join("done");
    let script = format!("echo on; cat; echo ended > {}", done.display());
    let (mut client, _) = agent.start_command(ExecSpec {
        stdin: true,
        tty: Some(TtySize {
            rows: 24,
            columns: 80,
        }),
        ..keep(sh(&script))
    });
    client.read_until(|seen| seen == b"on\r\n");
    client.send_frame(&Frame::Data(Stream::Stdin, b"a line\n"));
    drop(client);
    wait_until("it has seen the end of its stdin", || done.exists());
}

#[test]
fn a_kept_command_ends_as_any_other_while_the_host_listens() {
    let agent = Agent::start();
    let outcome = agent.run(keep(sh("echo out; exit 3")));
    assert_eq!(
        (outcome.text(), outcome.status),
        ("out\n", ExitStatus::Code(3))
    );
    let failure = agent.failure(keep(argv(&["/nothing"])));
    assert_eq!(failure.kind, FailureKind::NotFound, "{failure:?}");
}

#[test]
fn a_shutdown_ends_kept_commands() {
    let mut agent = Agent::start();
    let (client, pid) = agent.start_command(keep(sh("sleep 1000")));
    drop(client);
    assert_eq!(ask(&agent, &Request::Shutdown), Reply::ShuttingDown);
    wait_until("the command has ended", || !is_alive(pid));
    wait_until("the agent has ended", || {
        fs::metadata(agent.socket()).is_err() || !is_alive(agent.pid())
    });
    assert!(agent.has_ended());
}

#[test]
fn nothing_runs_between_prepare_and_renew() {
    let Some(agent) = freezing_agent("nothing_runs_between_prepare_and_renew") else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let length = || fs::metadata(&log).map_or(0, |log| log.len());
    let script = format!("while :; do echo tick >> {}; done", log.display());
    // A daemon of a command that has ended, and a command that is kept.
    agent.sh(&format!("setsid sh -c '{script}' & echo started"));
    let (client, kept) = agent.start_command(keep(sh(&script)));
    drop(client);
    wait_until("both run", || length() > 1000);

    assert_eq!(ask(&agent, &Request::Prepare {}), Reply::Prepared {});
    let frozen = length();
    let (kind, message) = refusal(&agent, &Request::Exec(sh("echo run")));
    assert_eq!(kind, FailureKind::State, "{message}");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(length(), frozen, "a program ran");
    // Again is no harm, and a renewal that cannot be carried out lets nobody run.
    assert_eq!(ask(&agent, &Request::Prepare {}), Reply::Prepared {});
    let wrong = Renewal {
        machine_id: "0".repeat(32),
        ..renewal()
    };
    let (kind, message) = refusal(&agent, &Request::Renew(wrong));
    assert_eq!(kind, FailureKind::Invalid);
    assert!(message.starts_with("machine_id: "), "{message}");
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(length(), frozen, "a program ran");

    let renewed = ask(&agent, &Request::Renew(renewal()));
    assert!(matches!(renewed, Reply::Renewed { .. }), "{renewed:?}");
    wait_until("programs run again", || length() > frozen);
    assert!(is_alive(kept));
    assert_eq!(agent.sh("echo run").text(), "run\n");
}

#[test]
fn a_frozen_command_is_killed_with_the_agent_s_end() {
    let Some(agent) = freezing_agent("a_frozen_command_is_killed_with_the_agent_s_end") else {
        return;
    };
    let (client, pid) = agent.start_command(keep(sh("sleep 1000")));
    drop(client);
    assert_eq!(ask(&agent, &Request::Prepare {}), Reply::Prepared {});
    assert!(is_alive(pid));
    assert_eq!(ask(&agent, &Request::Shutdown), Reply::ShuttingDown);
    wait_until("the command has ended", || !is_alive(pid));
}

#[test]
fn a_command_that_would_die_in_the_clones_is_told_and_runs_on() {
    let Some(agent) = freezing_agent("a_command_that_would_die_in_the_clones_is_told_and_runs_on")
    else {
        return;
    };
    let (mut client, _) = agent.start_command(sh("read -r x < /dev/null; sleep 0.3; echo done"));
    let (kind, message) = refusal(&agent, &Request::Prepare {});
    assert_eq!(kind, FailureKind::State);
    assert!(message.contains("`keep`"), "{message}");
    assert_eq!(client.collect().text(), "done\n");
    assert_eq!(ask(&agent, &Request::Prepare {}), Reply::Prepared {});
}

#[test]
fn a_guest_that_cannot_freeze_says_so_and_can_be_renewed() {
    let agent = Agent::start();
    let (kind, message) = refusal(&agent, &Request::Prepare {});
    assert_eq!(kind, FailureKind::State);
    assert!(message.contains("cgroup v2"), "{message}");
    let renewed = ask(&agent, &Request::Renew(renewal()));
    assert!(matches!(renewed, Reply::Renewed { .. }), "{renewed:?}");
    assert_eq!(agent.sh("echo run").text(), "run\n");
}

#[test]
fn hello_and_request_may_come_in_one_piece() {
    let agent = Agent::start();
    let mut bytes = Vec::new();
    for request in [
        Request::Hello {
            version: rundlet_protocol::VERSION,
        },
        Request::Renew(renewal()),
    ] {
        rundlet_protocol::frame::write_message(&mut bytes, &request).unwrap();
    }
    let mut client = agent.connect();
    client.send_bytes(&bytes);
    assert!(matches!(client.reply(), Reply::Hello { .. }));
    assert!(matches!(client.reply(), Reply::Renewed { .. }));
    assert!(client.frame().is_none());
}

#[test]
fn prepare_and_renew_have_their_place() {
    let agent = Agent::start();
    let mut client = agent.connect();
    client.send(&Request::Prepare {});
    assert_eq!(client.failure().kind, FailureKind::Protocol);
    for request in [Request::Prepare {}, Request::Renew(renewal())] {
        let (mut client, pid) = agent.start_command(keep(sh("sleep 1000")));
        client.send(&request);
        assert_eq!(client.failure().kind, FailureKind::Protocol);
        wait_until("the command has ended", || !is_alive(pid));
    }
}
