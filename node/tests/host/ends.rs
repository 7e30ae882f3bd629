//! Ends that nobody asked for.

use serde_json::{Value, json};

use super::daemon::{Daemon, backends, kill, text, vmms, with_template, zygotes};
use super::fixture::{Fixture, eventually};

#[test]
fn a_killed_vmm_is_a_failed_sandbox_and_a_free_slot() {
    let fixture = with_template();
    let mut daemon = Daemon::start(&fixture);
    let (id, other) = (daemon.clone_one(), daemon.clone_one());
    let pid = daemon.of("inspect", &id)["pid"].clone();
    kill(&pid);
    let (phase, reason) = daemon.end_of(&id);
    assert_eq!(phase, "failed");
    assert!(reason.contains("signal 9"), "{reason}");
    assert_eq!(daemon.sh(&other, "echo on")["stdout"], "on\n");
    assert_eq!(vmms(&fixture).len(), 1);
    let stats = daemon.ask("stats", json!({}));
    assert_eq!(stats["free"], 63, "{stats}");
    assert_eq!(stats["memory"], 128);
}

#[test]
fn a_killed_backend_takes_its_sandboxes_and_no_others() {
    let fixture = with_template();
    let mut daemon = Daemon::start(&fixture);
    let clones = [daemon.clone_one(), daemon.clone_one()];
    let first = backends(&fixture);
    let machine = daemon.boot_one();
    kill(&json!(first[0]));
    for id in &clones {
        let (phase, reason) = daemon.end_of(id);
        assert_eq!(phase, "failed");
        assert!(
            reason.contains("block backend has ended (signal: 9"),
            "{reason}"
        );
    }
    assert_eq!(daemon.event("backend_lost")["source"]["template"], "t");
    assert_eq!(daemon.sh(&machine, "echo on")["stdout"], "on\n");
    let id = daemon.clone_one();
    assert_eq!(daemon.sh(&id, "echo on")["stdout"], "on\n");
    let now = backends(&fixture);
    assert_eq!(now.len(), 2);
    assert!(!now.contains(&first[0]));
}

#[test]
fn clones_and_machines_outlive_their_zygotes() {
    let fixture = with_template();
    let mut daemon = Daemon::start(&fixture);
    let (clone, machine) = (daemon.clone_one(), daemon.boot_one());
    let before = zygotes(&fixture);
    assert_eq!(before.len(), 2);
    for pid in &before {
        kill(&json!(pid));
    }
    let mut lost: Vec<String> = (0..2)
        .map(|_| text(&daemon.event("zygote_lost")["template"]))
        .collect();
    lost.sort();
    assert_eq!(lost, ["", "t:latest"]);
    for id in [&clone, &machine] {
        assert_eq!(daemon.sh(id, "echo on")["stdout"], "on\n");
    }
    let (another, one_more) = (daemon.clone_one(), daemon.boot_one());
    assert_eq!(daemon.sh(&another, "echo on")["stdout"], "on\n");
    assert!(zygotes(&fixture).iter().all(|pid| !before.contains(pid)));
    // Of an orphan nobody knows how it ended, but that it did.
    let pid = daemon.of("inspect", &clone)["pid"].clone();
    kill(&pid);
    let (phase, reason) = daemon.end_of(&clone);
    assert_eq!(phase, "failed");
    assert!(reason.contains("nobody was there"), "{reason}");
    for id in [&machine, &another, &one_more] {
        assert_eq!(daemon.of("stop", id), Value::Null);
    }
    daemon.eventually_empty();
}

#[test]
fn what_does_not_start_is_told_and_leaves_nothing() {
    for (trouble, says) in [
        ("panic", "exit port"),
        ("garbage", "not understood"),
        ("zygote-refuses", "double says no"),
        ("backend-refuses", "double says no"),
    ] {
        let fixture = Fixture::new();
        let mut daemon = Daemon::start_with(&fixture, &[("RUNDLET_DOUBLE", trouble)]);
        let wish = json!({"key": trouble, "wish": {"source": {"image": "img"}}});
        let error = daemon.ask("create", wish.clone())["error"].clone();
        assert_eq!(error["kind"], "start", "{error}");
        assert!(text(&error["text"]).contains(says), "{trouble}: {error}");
        daemon.eventually_empty();
        let list = daemon.ask("list", json!({}));
        let record = list.as_array().unwrap().last().unwrap();
        assert_eq!(record["phase"], "failed");
        assert!(text(&record["reason"]).contains(says), "{record}");
        // The same wish under the same key is the same failure.
        let again = daemon.ask("create", wish)["error"].clone();
        assert_eq!(again["text"], error["text"]);
        daemon.close();
    }
}

#[test]
fn one_that_starts_can_be_killed() {
    let fixture = Fixture::new();
    let mut daemon = Daemon::start_with(&fixture, &[("RUNDLET_DOUBLE", "silence")]);
    let wish = json!({"wish": {"source": {"image": "img"}}});
    let tag = daemon.request("create", wish);
    let id = text(&daemon.event("sandbox")["id"]);
    eventually("a VMM", || !vmms(&fixture).is_empty());
    assert_eq!(daemon.of("kill", &id), Value::Null);
    let error = daemon.answer(tag)["error"].clone();
    assert_eq!(error["kind"], "ended", "{error}");
    assert_eq!(daemon.end_of(&id).0, "stopped");
    daemon.eventually_empty();
}

/// The sandbox of a command line that was killed before it could say what to run.
fn for_one_command() -> Value {
    json!({"source": {"template": "t"}, "auto_remove": true})
}

#[test]
fn one_that_was_made_for_a_command_goes_if_none_comes() {
    let fixture = with_template();
    let mut daemon = Daemon::start_with(&fixture, &[("RUNDLET_FIRST_COMMAND", "2")]);
    let used = text(&daemon.create(&for_one_command())["id"]);
    daemon.of("open", &used);
    let kept = daemon.clone_one();
    let unused = text(&daemon.create(&for_one_command())["id"]);
    assert_eq!(daemon.event("removed")["id"], unused.as_str());
    assert_eq!(daemon.of("inspect", &unused)["error"]["kind"], "not-found");
    // The first one was ready before it, and would have gone before it.
    assert_eq!(daemon.of("inspect", &used)["phase"], "running");
    assert_eq!(daemon.of("inspect", &kept)["phase"], "ready");
    daemon.of("let-go", &used);
    assert_eq!(daemon.event("removed")["id"], used.as_str());
}

#[test]
fn so_does_one_whose_command_was_lost_with_a_daemon() {
    let fixture = with_template();
    let mut daemon = Daemon::start(&fixture);
    let id = text(&daemon.create(&for_one_command())["id"]);
    daemon.of("open", &id);
    let kept = daemon.clone_one();
    daemon.kill();
    let mut daemon = Daemon::start_with(&fixture, &[("RUNDLET_FIRST_COMMAND", "1")]);
    assert_eq!(daemon.event("removed")["id"], id.as_str());
    assert_eq!(daemon.of("inspect", &kept)["phase"], "ready");
}
