//! `rundlet bench` with the doubles: who is measured, what is written, what is left.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::fixture::{Fixture, RUNDLET, code, eventually, stderr, stdout};

fn with_template() -> Fixture {
    let fixture = Fixture::new();
    let output = fixture.rundlet(&["template", "build", "img", "t"]);
    assert!(output.status.success(), "{output:?}");
    fixture
}

/// A program that stays and says nothing, as a VMM whose guest does not come up.
fn silent_peer(fixture: &Fixture) -> String {
    let path = fixture.path("silent");
    fs::write(&path, "#!/bin/sh\nexec sleep 1000\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

#[test]
fn starts_of_both_our_ways_are_measured_and_a_broken_peer_is_told() {
    let fixture = with_template();
    let (json, html) = (fixture.text("start.json"), fixture.text("start.html"));
    let output = fixture.rundlet(&[
        "bench",
        "start",
        "--count",
        "2",
        "--concurrency",
        "1,2",
        "--deployed",
        "1",
        "--settle",
        "0",
        "--template",
        "t",
        "--cold",
        "img",
        "--peer",
        "firecracker-cold=/bin/false",
        "--json",
        &json,
        "--html",
        &html,
    ]);
    assert!(output.status.success(), "{}", stderr(&output));
    let report: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    assert_eq!(report["version"], 1);
    assert_eq!(report["command"][0], "start");
    let systems = report["systems"].as_array().unwrap();
    for (system, name) in systems.iter().zip(["rundlet", "rundlet-cold"]) {
        assert_eq!(system["name"], name);
        let rows = system["start"].as_array().unwrap();
        let shape =
            |row: &Value| ["deployed", "at_once", "ready", "failed"].map(|it| row[it].as_u64());
        let shape: Vec<_> = rows.iter().map(shape).collect();
        let expected = [[0, 1, 2, 0], [0, 2, 2, 0], [1, 1, 2, 0], [1, 2, 2, 0]];
        assert_eq!(shape, expected.map(|row| row.map(Some)), "{system}");
        assert!(rows[0]["steps"].as_array().unwrap().len() > 2, "{system}");
    }
    let broken = &systems[2]["start"][0];
    assert_eq!(
        (&broken["ready"], &broken["start_ms"]),
        (&0.into(), &Value::Null)
    );
    let why = broken["failure"].as_str().unwrap();
    assert!(why.contains("ended before it was ready"), "{why}");
    assert!(stdout(&output).contains(why), "{}", stdout(&output));
    assert!(fs::read_to_string(&html).unwrap().contains("<svg "));
    eventually("a clean end", || fixture.is_clean());
    assert!(
        fs::read_dir(fixture.path("store/tmp"))
            .unwrap()
            .next()
            .is_none()
    );
}

#[test]
fn idle_clones_are_measured_step_by_step() {
    let fixture = with_template();
    let output = fixture.rundlet(&[
        "bench",
        "density",
        "--count",
        "3",
        "--step",
        "2",
        "--quiet",
        "1",
        "--settle",
        "0",
        "--template",
        "t",
        "--json",
        "-",
    ]);
    assert!(output.status.success(), "{}", stderr(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = report["systems"][0]["density"]["rows"].as_array().unwrap();
    let deployed: Vec<_> = rows.iter().map(|row| row["deployed"].as_u64()).collect();
    assert_eq!(deployed, [Some(2), Some(3)]);
    assert!(rows[1]["pss_kib"].as_f64().unwrap() > 0.0);
    eventually("a clean end", || fixture.is_clean());
}

/// `examples/served`: the API without a host behind it.
fn serve(fixture: &Fixture) -> (Child, String) {
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "-p", "rundlet", "--example", "served"])
        .status()
        .unwrap();
    assert!(status.success(), "building the daemon failed");
    let program = Path::new(RUNDLET).with_file_name("examples").join("served");
    let socket = fixture.text("api.sock");
    let usual = fixture.command(&[]);
    let environment = usual.get_envs().filter_map(|(name, it)| Some((name, it?)));
    let daemon = Command::new(program)
        .args(["--socket", &socket, "--directory", &fixture.text("node")])
        .envs(environment)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    eventually("a daemon", || UnixStream::connect(&socket).is_ok());
    (daemon, socket)
}

#[test]
fn a_daemon_and_a_fleet_start_in_turns_and_in_a_row() {
    let fixture = with_template();
    let (mut daemon, socket) = serve(&fixture);
    let output = fixture.rundlet(&[
        "bench",
        "node",
        "--template",
        "t",
        "--pairs",
        "2",
        "--count",
        "5",
        "--alive",
        "2",
        "--at-once",
        "2",
        "--settle",
        "0",
        "--socket",
        &socket,
        "--json",
        "-",
    ]);
    assert!(output.status.success(), "{}", stderr(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["daemon_found"], true);
    let systems = report["systems"].as_array().unwrap();
    let names: Vec<_> = systems.iter().map(|it| it["name"].as_str()).collect();
    assert_eq!(names, [Some("rundlet"), Some("daemon")]);
    for system in systems {
        assert_eq!(system["start"][0]["ready"], 2, "{system}");
        assert!(system["start"][0]["steps"].as_array().unwrap().len() > 3);
    }
    assert!(report["overhead"]["start_ms_p50"].is_number(), "{report}");
    for row in report["sustained"].as_array().unwrap() {
        assert_eq!(
            (&row["ready"], &row["failed"]),
            (&5.into(), &0.into()),
            "{row}"
        );
        assert!(row["starts_per_s"].as_f64().unwrap() > 0.0);
    }
    let client = rundlet_node::client::Client::new(Path::new(&socket)).unwrap();
    assert!(client.list("").unwrap().is_empty(), "it leaves sandboxes");
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    eventually("a clean end", || fixture.is_clean());
}

#[test]
fn a_peer_does_not_outlive_us_whatever_ends_us() {
    for signal in [Signal::TERM, Signal::KILL] {
        let fixture = Fixture::new();
        let peer = format!("firecracker-cold={}", silent_peer(&fixture));
        let mut child = fixture
            .command(&[
                "bench",
                "start",
                "--count",
                "1",
                "--concurrency",
                "1",
                "--settle",
                "0",
                "--cold",
                "img",
                "--peer",
                &peer,
            ])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let sleeps = || {
            fixture
                .processes()
                .iter()
                .any(|(_, it)| it.starts_with("sleep "))
        };
        eventually("the peer's process", sleeps);
        let (peer, _) = (fixture.processes().into_iter())
            .find(|(_, it)| it.starts_with("sleep "))
            .unwrap();
        let limits = fs::read_to_string(format!("/proc/{peer}/limits")).unwrap();
        let files = limits.lines().find(|it| it.starts_with("Max open files"));
        assert!(files.unwrap().contains(" 2048 "), "{files:?}");
        let pid = i32::try_from(child.id())
            .ok()
            .and_then(Pid::from_raw)
            .unwrap();
        kill_process(pid, signal).unwrap();
        if signal == Signal::TERM {
            // The first one waits for the peer's start, which takes minutes to give up.
            std::thread::sleep(std::time::Duration::from_millis(100));
            kill_process(pid, signal).unwrap();
            assert_eq!(code(&mut child), Some(143));
        } else {
            assert_eq!(code(&mut child), None);
        }
        eventually("a clean end", || fixture.is_clean());
        assert!(
            fs::read_dir(fixture.path("store/tmp"))
                .unwrap()
                .next()
                .is_none()
        );
    }
}

#[test]
fn what_cannot_be_measured_is_one_sentence() {
    let fixture = with_template();
    for (args, words) in [
        (
            vec!["start", "--template", "none"],
            "there is no template none:latest",
        ),
        (
            vec!["start", "--cold", "none"],
            "there is no image none:latest",
        ),
        (
            vec!["start", "--cold", "img", "--memory", "1"],
            "--memory is 1 MiB",
        ),
        (
            vec!["node", "--template", "none"],
            "there is no template none:latest",
        ),
        (
            vec![
                "node",
                "--template",
                "t",
                "--settle",
                "0",
                "--socket",
                "/nonexistent/api.sock",
            ],
            "daemon: no daemon answers at /nonexistent/api.sock",
        ),
        (
            vec![
                "node",
                "--template",
                "t",
                "--settle",
                "0",
                "--root",
                "/proc",
            ],
            "/proc is there already",
        ),
        (vec!["report", "/dev/null"], "/dev/null is no report"),
        (vec!["report"], "no files"),
        (
            vec!["start", "--cold", "img", "--json", "/nonexistent/x"],
            "cannot write /nonexistent/x",
        ),
    ] {
        let output = fixture.rundlet(&[&["bench"], &*args].concat());
        assert!(!output.status.success(), "{args:?}");
        assert!(
            stderr(&output).contains(words),
            "{args:?}: {}",
            stderr(&output)
        );
        assert_eq!(stdout(&output), "", "{args:?}");
    }
}
