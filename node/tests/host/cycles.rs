//! Many lives of sandboxes after another: what is left of them, all together. The same with real guests is
//! `vm-tests/no-leaks-after-500-cycles.py`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::daemon::{Daemon, backends, text, with_template, zygotes};
use super::fixture::Fixture;

const SANDBOXES: usize = 500;
const AT_ONCE: usize = 4;

#[test]
fn five_hundred_sandboxes_leave_nothing() {
    let fixture = with_template();
    // Of those that have ended some are remembered: after a tenth of the sandboxes as many as there ever will be.
    let mut daemon = Daemon::start_with(&fixture, &[("RUNDLET_ENDED", "4")]);
    live(&mut daemon, SANDBOXES / 10);
    let before = counts(&mut daemon);
    live(&mut daemon, SANDBOXES - SANDBOXES / 10);
    let mut after = counts(&mut daemon);
    for _ in 0..20 {
        if grown(&before, &after).is_empty() {
            break;
        }
        // What was just about to end is no leak.
        thread::sleep(Duration::from_millis(250));
        after = counts(&mut daemon);
    }
    assert_eq!(grown(&before, &after), Vec::<String>::new());

    // The twin: one that is there shows.
    daemon.clone_one();
    let during = counts(&mut daemon);
    for what in ["daemon descriptors", "backends descriptors", "files"] {
        assert!(during[what] > before[what], "{what}: {during:?} {before:?}");
    }
}

/// So many sandboxes, in their three ways to an end.
fn live(daemon: &mut Daemon<'_>, count: usize) {
    for round in 0..count.div_ceil(AT_ONCE) {
        let wish = json!({"wish": {"source": {"template": "t"}}});
        let tags: Vec<u64> = (0..AT_ONCE.min(count - round * AT_ONCE))
            .map(|_| daemon.request("create", wish.clone()))
            .collect();
        for (number, tag) in tags.into_iter().enumerate() {
            let created = daemon.answer(tag);
            let id = text(&created["detail"]["id"]);
            assert_eq!(daemon.sh(&id, "echo on")["stdout"], "on\n", "{created}");
            if number == 1 {
                assert_eq!(daemon.of("stop", &id), Value::Null);
            } else if number == 2 {
                assert_eq!(daemon.of("kill", &id), Value::Null);
            }
            if number != 3 || round % 2 == 0 {
                let removed = daemon.ask("remove", json!({"id": id, "force": true}));
                assert_eq!(removed, Value::Null);
            } else {
                // Forgotten by itself, when there are too many of these.
                assert_eq!(daemon.of("kill", &id), Value::Null);
            }
        }
    }
    daemon.eventually_empty();
}

/// Everything that a sandbox has somewhere, counted.
fn counts(daemon: &mut Daemon<'_>) -> BTreeMap<String, u64> {
    let fixture: &Fixture = daemon.fixture;
    let mut counts = BTreeMap::new();
    for (name, pids) in [
        ("daemon", vec![daemon.pid()]),
        ("zygotes", zygotes(fixture)),
        ("backends", backends(fixture)),
    ] {
        let sum = |of: fn(u32) -> u64| pids.iter().map(|pid| of(*pid)).sum();
        counts.insert(format!("{name} descriptors"), sum(descriptors));
        counts.insert(format!("{name} threads"), sum(threads));
        counts.insert(format!("{name} resident KiB"), sum(resident_kib));
    }
    let files = ["run", "store"].map(|name| files_below(&fixture.path(name)));
    counts.insert("files".to_owned(), files.iter().sum());
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    counts.insert("mounts".to_owned(), mounts.lines().count() as u64);
    counts.insert("processes".to_owned(), fixture.processes().len() as u64);
    counts
}

/// Which of them have grown, and how far.
fn grown(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> Vec<String> {
    let pairs = before
        .iter()
        .map(|(what, count)| (what, *count, after[what]));
    pairs
        .filter(|(what, before, after)| *after > *before + slack(what))
        .map(|(what, before, after)| format!("{what}: {before}, then {after}"))
        .collect()
}

/// What allocators and pools of threads may keep; what leaked four hundred and fifty times would be more.
fn slack(what: &str) -> u64 {
    match what.rsplit_once(' ') {
        Some((_, "KiB")) => 4096,
        Some(("daemon", "threads")) => 4,
        _ => 0,
    }
}

fn descriptors(pid: u32) -> u64 {
    entries(&format!("/proc/{pid}/fd"))
}

fn threads(pid: u32) -> u64 {
    entries(&format!("/proc/{pid}/task"))
}

fn entries(directory: &str) -> u64 {
    fs::read_dir(directory).map_or(0, |entries| entries.count() as u64)
}

fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .unwrap_or(0)
}

fn files_below(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| 1 + files_below(&entry.path())).sum()
}
