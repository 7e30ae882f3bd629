use std::io::{Read, Write};
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::fixture::{RUNDLET, Served, eventually};

fn run(served: &Served, args: &[&str]) -> Output {
    served.command(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What it printed, having done well.
fn told(served: &Served, args: &[&str]) -> String {
    let output = run(served, args);
    assert!(output.status.success(), "{args:?}: {output:?}");
    text(&output.stdout)
}

#[test]
fn a_sandbox_lives_through_the_verbs() {
    let served = Served::new();
    let create = [
        "create", "--label", "job=7", "--env", "A=b", "--key", "k", "img",
    ];
    let id = told(&served, &create).trim().to_owned();
    assert_eq!(told(&served, &create).trim(), id, "the same key");
    let listed = told(&served, &["ps", "--label", "job=7"]);
    assert!(listed.contains(&format!("{id} ready")), "{listed}");
    assert!(listed.contains("image img:latest"), "{listed}");
    assert_eq!(
        told(&served, &["ps", "--label", "job=8"]).lines().count(),
        1
    );
    let output = run(
        &served,
        &[
            "exec",
            &id,
            "--",
            "sh",
            "-c",
            "echo $A; echo no >&2; exit 7",
        ],
    );
    assert_eq!(text(&output.stdout), "b\n");
    assert_eq!(text(&output.stderr), "no\n");
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(
        run(&served, &["exec", &id, "--", "/no/such"]).status.code(),
        Some(127)
    );
    let detail: serde_json::Value =
        serde_json::from_str(&told(&served, &["inspect", &id])).unwrap();
    assert_eq!(detail["phase"], "running");
    assert!(told(&served, &["logs", &id]).contains("Linux version"));
    let output = run(&served, &["rm", &id]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("it lives"), "{output:?}");
    told(&served, &["stop", "--grace", "1", &id]);
    assert_eq!(told(&served, &["ps"]).lines().count(), 1);
    assert!(told(&served, &["ps", "-a"]).contains("stopped"));
    assert_eq!(told(&served, &["rm", &id]).trim(), id);
    let json = told(&served, &["ps", "-a", "--json"]);
    assert_eq!(json.trim(), "[]");
    let output = run(&served, &["kill", &id]);
    assert!(
        text(&output.stderr).contains("there is no sandbox"),
        "{output:?}"
    );
}

#[test]
fn stdin_comes_through_whole_and_its_end_too() {
    let served = Served::new();
    let id = told(&served, &["create", "img"]).trim().to_owned();
    let mut child = served
        .command(&["exec", "-i", &id, "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let bytes: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let (mut stdin, sent) = (child.stdin.take().unwrap(), bytes.clone());
    let writer = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
    let mut back = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut back).unwrap();
    writer.join().unwrap();
    assert!(child.wait().unwrap().success());
    assert!(back == bytes);
}

#[test]
fn signals_go_to_the_command() {
    let served = Served::new();
    let id = told(&served, &["create", "img"]).trim().to_owned();
    let script = "trap 'echo caught; exit 9' TERM; echo up; while :; do sleep 0.05; done";
    let mut child = served
        .command(&["exec", &id, "--", "sh", "-c", script])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut line = [0; 3];
    stdout.read_exact(&mut line).unwrap();
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "caught\n");
    assert_eq!(child.wait().unwrap().code(), Some(9));
}

#[test]
fn a_terminal_is_one_for_the_command() {
    let served = Served::new();
    let id = told(&served, &["create", "img"]).trim().to_owned();
    let output = run(
        &served,
        &["exec", "-t", &id, "--", "sh", "-c", "tty; stty size"],
    );
    let words = text(&output.stdout);
    assert!(words.starts_with("/dev/pts/"), "{output:?}");
    assert!(words.contains("24 80"), "{output:?}");
}

#[test]
fn a_run_is_hosted_by_the_daemon_that_answers() {
    let served = Served::new();
    let mut events = served
        .command(&["events", "--since", "0"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = served
        .command(&[
            "run",
            "--env",
            "A=b",
            "img",
            "--",
            "sh",
            "-c",
            "echo $A; exit 5",
        ])
        .env("RUST_LOG", "info")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    assert_eq!(text(&output.stdout), "b\n");
    assert!(
        text(&output.stderr).contains("hosts the sandbox"),
        "{output:?}"
    );
    eventually("its sandbox is gone", || served.sandboxes().is_empty());
    let output = run(
        &served,
        &["run", "--timeout", "1", "img", "--", "sleep", "100"],
    );
    assert_eq!(output.status.code(), Some(124), "{output:?}");
    eventually("its sandbox is gone", || served.sandboxes().is_empty());
    served.tell(Signal::TERM);
    let mut told = String::new();
    events
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut told)
        .unwrap();
    events.wait().unwrap();
    assert!(told.contains(r#""to":"running""#), "{told}");
    assert!(told.lines().all(|line| line.starts_with('{')), "{told}");
}

#[test]
fn who_hosts_a_run_can_be_said() {
    let served = Served::new();
    let refused = |args: &[&str]| {
        let output = run(&served, args);
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        text(&output.stderr)
    };
    let always = ["run", "--daemon", "always", "--stats", "img", "--", "true"];
    assert!(refused(&always).contains("--stats cannot be done by a daemon"));
    // The store of this process is empty: it is this process that looks into it.
    let never = ["run", "--daemon", "never", "img", "--", "true"];
    assert!(refused(&never).contains("there is no image img:latest"));
    let ours = ["run", "--console", "/dev/null", "img", "--", "true"];
    assert!(refused(&ours).contains("there is no image img:latest"));
    assert!(served.sandboxes().is_empty());
}

#[test]
fn without_a_daemon_it_is_said_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    for (args, code) in [
        (vec!["ps"], 1),
        (vec!["create", "img"], 1),
        (vec!["rm", "x"], 1),
        (vec!["exec", "x", "--", "true"], 125),
        (vec!["run", "--daemon", "always", "img", "--", "true"], 125),
    ] {
        let output = Command::new(RUNDLET)
            .args(&args)
            .env("RUNDLET_SOCKET", directory.path().join("api.sock"))
            .output()
            .unwrap();
        let words = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {words}");
        assert!(words.contains("rundlet serve"), "{args:?}: {words}");
        assert_eq!(words.lines().count(), 1, "{words}");
    }
}
