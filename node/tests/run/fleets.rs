//! Many clones at once, as a script uses them.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::fixture::{Fixture, code, eventually, stderr};

fn with_template() -> Fixture {
    let fixture = Fixture::new();
    let output = fixture.rundlet(&["template", "build", "img", "t"]);
    assert!(output.status.success(), "{output:?}");
    fixture
}

fn args<'a>(options: &[&'a str], script: &'a str) -> Vec<&'a str> {
    let mut args = vec!["fleet", "--template", "t"];
    args.extend_from_slice(options);
    args.extend(["--", "sh", "-c", script]);
    args
}

fn lines(stdout: &[u8]) -> Vec<Value> {
    let text = String::from_utf8_lossy(stdout);
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// A fleet that stays until its stdin ends.
struct Staying {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Staying {
    fn start(fixture: &Fixture, script: &str) -> Self {
        let mut child = fixture
            .command(&args(&["--count", "3", "--stay"], script))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            stdin: child.stdin.take(),
            stdout: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    fn again(&mut self) {
        self.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }

    /// The next lines of a kind.
    fn next(&mut self, kind: &str, count: usize) -> Vec<Value> {
        let mut found = Vec::new();
        while found.len() < count {
            let mut line = String::new();
            assert!(self.stdout.read_line(&mut line).unwrap() > 0, "{found:?}");
            let line: Value = serde_json::from_str(&line).unwrap();
            found.extend(line.get(kind).cloned());
        }
        found
    }
}

fn kill(pid: &Value) {
    let pid = i32::try_from(pid.as_i64().unwrap()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

#[test]
fn a_command_runs_in_each_and_nothing_is_left() {
    let fixture = with_template();
    let options = ["--count", "12", "--at-once", "5"];
    let output = fixture.rundlet(&args(&options, "echo out; echo err >&2; exit 7"));
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    let lines = lines(&output.stdout);
    assert_eq!(lines[0]["started"]["ready"], 12);
    let ran = |line: &Value| {
        let ran = &line["command"];
        assert_eq!(ran["stdout"], "out\n", "{line}");
        assert_eq!(ran["stderr"], "err\n");
        assert!(ran["ready_us"].as_u64().unwrap() > 0);
        ran["id"].as_str().unwrap().to_owned()
    };
    let mut ids: Vec<String> = lines[1..].iter().map(ran).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 12);
    assert_eq!(ids[0], "c0000");
    assert!(fixture.is_clean(), "{:?}", fixture.processes());
}

#[test]
fn clones_outlive_their_zygote_and_another_one_makes_more() {
    let fixture = with_template();
    let mut fleet = Staying::start(&fixture, "exit 0");
    let first = fleet.next("started", 1).remove(0);
    let before = fleet.next("command", 3);
    kill(&first["zygote"]);
    fleet.next("event", 1);
    fleet.again();
    let second = fleet.next("started", 1).remove(0);
    assert_eq!(second["ready"], 3);
    assert_ne!(second["zygote"], first["zygote"]);
    assert_eq!(second["backend"], first["backend"]);
    let after = fleet.next("command", 6);
    for ran in &before {
        let same = |it: &&Value| it["id"] == ran["id"] && it["pid"] == ran["pid"];
        assert_eq!(after.iter().filter(same).count(), 1, "{after:?}");
    }
    drop(fleet.stdin.take());
    assert_eq!(code(&mut fleet.child), Some(0));
    eventually("no leftovers", || fixture.is_clean());
}

#[test]
fn a_clone_that_ends_is_told_and_the_others_go_on() {
    let fixture = with_template();
    let mut fleet = Staying::start(&fixture, "exit 0");
    let ran = fleet.next("command", 3);
    kill(&ran[0]["pid"]);
    let event = fleet.next("event", 1).remove(0);
    let what = event["what"].as_str().unwrap();
    assert!(what.contains(ran[0]["id"].as_str().unwrap()), "{what}");
    assert!(what.contains("Signal(9)"), "{what}");
    fleet.again();
    assert_eq!(fleet.next("command", 5).len(), 5);
    drop(fleet.stdin.take());
    assert_eq!(code(&mut fleet.child), Some(125));
    eventually("no leftovers", || fixture.is_clean());
}

#[test]
fn a_killed_fleet_leaves_nothing() {
    let fixture = with_template();
    let mut fleet = Staying::start(&fixture, "exit 0");
    fleet.next("command", 3);
    assert!(fixture.processes().len() >= 6, "{:?}", fixture.processes());
    fleet.child.kill().unwrap();
    fleet.child.wait().unwrap();
    eventually("no leftovers", || fixture.is_clean());
    let mut fleet = Staying::start(&fixture, "exit 0");
    fleet.next("command", 3);
    let pid = i32::try_from(fleet.child.id()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
    assert_eq!(code(&mut fleet.child), Some(143));
    eventually("no leftovers", || fixture.is_clean());
}

#[test]
fn what_cannot_be_made_is_told() {
    let fixture = with_template();
    for (trouble, says) in [
        ("zygote-refuses", "double says no"),
        // Not what the connection that should have renewed it made of that.
        (
            "dies-at-renewal",
            "ended before it was ready: double: no such instruction",
        ),
    ] {
        let output = fixture
            .command(&args(&["--count", "2"], "exit 0"))
            .env("RUNDLET_DOUBLE", trouble)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(125));
        let lines = lines(&output.stdout);
        let of = |kind: &str| lines.iter().find_map(|line| line.get(kind));
        let error = of("failed").unwrap()["error"].as_str().unwrap();
        assert!(error.contains(says), "{error}");
        assert_eq!(of("started").unwrap()["failed"], 2);
        assert!(fixture.is_clean(), "{:?}", fixture.processes());
    }

    // Once a kernel is not the template's, once its memory.
    fs::write(fixture.path("guest/vmlinux"), "a newer one").unwrap();
    let output = fixture.rundlet(&args(&["--count", "1"], "exit 3"));
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(stderr(&output).contains("is built again"), "{output:?}");
    fs::write(fixture.path("store/templates/t:latest/memory"), "short").unwrap();
    let output = fixture.rundlet(&args(&["--count", "1"], "exit 3"));
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(stderr(&output).contains("double: no memory"), "{output:?}");
}
