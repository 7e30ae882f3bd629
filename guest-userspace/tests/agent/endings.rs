//! Signals, disconnects, orphans, shutdown: how commands and the agent end.

use std::fs;
use std::time::{Duration, Instant};

use rundlet_protocol::{ExitStatus, FailureKind, Ready, Reply, Request, VERSION, frame};

use crate::client::{Agent, argv, cgroup_root, is_alive, leaves, sh, wait_until};

/// A command that leaves the process group twice over and prints the daemon's pid.
const DOUBLE_FORK: &str = "(setsid sh -c 'echo $$; exec sleep 1000' &) ; sleep 1000";

#[test]
fn signals_reach_the_whole_process_group() {
    let agent = Agent::start();
    let (mut client, _) = agent.start_command(sh("sleep 1000 & echo $!; wait"));
    let text = client.read_until(|seen| seen.ends_with(b"\n"));
    let child: u32 = String::from_utf8(text).unwrap().trim().parse().unwrap();
    client.signal(15);
    assert_eq!(client.collect().status, ExitStatus::Signal(15));
    wait_until("the child has ended", || !is_alive(child));
}

#[test]
fn a_signal_can_be_handled() {
    let agent = Agent::start();
    let script = "trap 'echo caught; exit 3' USR1; echo ready; while :; do sleep 0.01; done";
    let (mut client, _) = agent.start_command(sh(script));
    client.read_until(|seen| seen == b"ready\n");
    client.signal(10);
    let outcome = client.collect();
    assert_eq!(
        (outcome.text(), outcome.status),
        ("caught\n", ExitStatus::Code(3))
    );
}

#[test]
fn every_signal_ends_a_program_as_that_signal() {
    let agent = Agent::start();
    for signal in [1, 2, 3, 6, 9, 11, 13, 14, 64] {
        let (mut client, _) = agent.start_command(argv(&["sleep", "1000"]));
        client.signal(signal);
        assert_eq!(client.collect().status, ExitStatus::Signal(signal));
    }
}

#[test]
fn a_signal_right_behind_the_request_is_not_lost() {
    let agent = Agent::start();
    for _ in 0..50 {
        let mut client = agent.greet();
        client.send(&Request::Exec(argv(&["sleep", "1000"])));
        // The agent itself ignores this one.
        client.signal(13);
        assert!(matches!(client.reply(), Reply::Started { .. }));
        assert_eq!(client.collect().status, ExitStatus::Signal(13));
    }
}

#[test]
fn a_signal_to_a_command_that_has_just_ended_is_harmless() {
    let agent = Agent::start();
    for _ in 0..50 {
        let (mut client, _) = agent.start_command(argv(&["true"]));
        let json = serde_json_signal();
        // The agent may have closed by now.
        let _ = std::io::Write::write_all(&mut client.stream(), &json);
        assert!(matches!(
            client.collect().status,
            ExitStatus::Code(0) | ExitStatus::Signal(9)
        ));
    }
}

fn serde_json_signal() -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::write_message(&mut bytes, &Request::Signal { signal: 9 }).unwrap();
    bytes
}

#[test]
fn a_disconnect_kills_the_process_group() {
    let agent = Agent::start();
    let (mut client, pid) = agent.start_command(sh("trap '' HUP TERM; sleep 1000 & echo $!; wait"));
    let text = client.read_until(|seen| seen.ends_with(b"\n"));
    let child: u32 = String::from_utf8(text).unwrap().trim().parse().unwrap();
    drop(client);
    wait_until("the command has ended", || !is_alive(pid));
    wait_until("its child has ended", || !is_alive(child));
    assert_eq!(agent.run(argv(&["true"])).status, ExitStatus::Code(0));
}

#[test]
fn a_disconnect_kills_what_left_the_process_group() {
    let Some(root) = cgroup_root() else {
        eprintln!("skipped: a_disconnect_kills_what_left_the_process_group: no cgroup v2 here");
        return;
    };
    let agent = Agent::start_in(Some(root));
    let (mut client, _) = agent.start_command(sh(DOUBLE_FORK));
    let text = client.read_until(|seen| seen.ends_with(b"\n"));
    let daemon: u32 = String::from_utf8(text).unwrap().trim().parse().unwrap();
    drop(client);
    wait_until("the daemon has ended", || !is_alive(daemon));
    no_leaf_left(&agent, root);
}

#[test]
fn a_cgroup_goes_when_the_last_process_in_it_has_gone() {
    let Some(root) = cgroup_root() else {
        eprintln!("skipped: a_cgroup_goes_when_the_last_process_in_it_has_gone: no cgroup v2 here");
        return;
    };
    let agent = Agent::start_in(Some(root));
    let outcome = agent.sh("setsid sleep 1000 & echo $!; cat /proc/self/cgroup");
    let text = outcome.text();
    let daemon = text.lines().next().unwrap().to_owned();
    let leaf = format!("/rundlet.{}.", agent.pid());
    assert!(text.contains(&leaf), "{text}");
    assert!(is_alive(daemon.parse().unwrap()), "a daemon stays");
    assert_eq!(leaves(agent.pid(), Some(root)).len(), 1);
    agent.run(argv(&["kill", "-9", &daemon]));
    no_leaf_left(&agent, root);
}

fn no_leaf_left(agent: &Agent, root: &str) {
    wait_until("the cgroups are removed", || {
        leaves(agent.pid(), Some(root)).is_empty()
    });
}

#[test]
fn orphans_are_reaped() {
    let agent = Agent::start();
    let script = "i=0; while [ $i -lt 200 ]; do (true & true &); i=$((i+1)); done";
    assert_eq!(agent.sh(script).status, ExitStatus::Code(0));
    wait_until("no child is left", || {
        let path = format!("/proc/{0}/task/{0}/children", agent.pid());
        fs::read_to_string(path).unwrap().is_empty()
    });
}

#[test]
fn shutdown_is_answered_and_ends_the_agent_with_its_commands() {
    let mut agent = Agent::start();
    let (_other, pid) = agent.start_command(argv(&["sleep", "1000"]));
    let mut client = agent.greet();
    client.send(&Request::Shutdown);
    assert_eq!(client.reply(), Reply::ShuttingDown);
    assert!(client.frame().is_none());
    let begun = Instant::now();
    drop(client);
    while !agent.has_ended() {
        assert!(begun.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(5));
    }
    wait_until("the command has ended", || !is_alive(pid));
}

#[test]
fn shutdown_does_not_wait_long_for_a_host_that_does_not_close() {
    let mut agent = Agent::start();
    let mut client = agent.greet();
    client.send(&Request::Shutdown);
    assert_eq!(client.reply(), Reply::ShuttingDown);
    let begun = Instant::now();
    while !agent.has_ended() {
        assert!(begun.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn ready_is_announced_once_and_nobody_has_to_listen() {
    let directory = tempfile::tempdir().unwrap();
    let ready_socket = directory.path().join("ready.sock");
    let listener = std::os::unix::net::UnixListener::bind(&ready_socket).unwrap();
    let binary = std::env::var_os("RUNDLET_INIT")
        .unwrap_or_else(|| env!("CARGO_BIN_EXE_rundlet-init").into());
    let mut agent = std::process::Command::new(binary)
        .arg("serve")
        .arg(directory.path().join("agent.sock"))
        .arg(&ready_socket)
        .spawn()
        .unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    let mut buffer = Vec::new();
    let Some(frame::Frame::Control(json)) = frame::read(&mut stream, &mut buffer).unwrap() else {
        panic!("no message");
    };
    let ready: Ready = frame::parse_message(json).unwrap();
    assert_eq!(ready.version, VERSION);
    assert!(0 < ready.init_us && ready.init_us <= ready.ready_us);
    assert!(frame::read(&mut stream, &mut buffer).unwrap().is_none());
    agent.kill().unwrap();
    agent.wait().unwrap();
}

#[test]
fn many_sessions_run_at_once_and_one_too_many_is_told() {
    let agent = Agent::start();
    let files = agent.open_files();
    let mut clients: Vec<_> = (0..255)
        .map(|_| agent.start_command(argv(&["sleep", "1000"])))
        .collect();
    assert_eq!(agent.run(argv(&["echo", "last"])).text(), "last\n");
    // Its session is over once the agent has seen it closed.
    let extra = std::iter::repeat_with(|| agent.try_greet())
        .find_map(Result::ok)
        .unwrap();
    let failure = agent.connect().failure();
    assert_eq!(failure.kind, FailureKind::Resources);
    assert!(failure.message.contains("256"), "{failure:?}");
    drop(extra);
    for (client, _) in &mut clients {
        client.signal(15);
    }
    for (client, _) in &mut clients {
        assert_eq!(client.collect().status, ExitStatus::Signal(15));
    }
    drop(clients);
    wait_until("every descriptor is closed", || agent.open_files() <= files);
}
