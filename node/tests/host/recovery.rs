//! What a daemon finds that comes after another one.

use std::fs;

use serde_json::{Value, json};

use super::daemon::{Daemon, backends, entries, kill, text, vmms, with_template, zygotes};
use super::fixture::{Fixture, eventually};

#[test]
fn sandboxes_survive_the_daemon_and_are_found_again() {
    let fixture = with_template();
    let mut daemon = Daemon::start(&fixture);
    let (used, machine) = (daemon.clone_one(), daemon.boot_one());
    let fresh = daemon.create(&json!({
        "source": {"template": "t"}, "env": {"A": "1"}, "labels": {"l": "v"}, "timeout_s": 3000,
    }));
    let fresh_id = text(&fresh["id"]);
    daemon.sh(&used, "exit 0");
    let ended = daemon.clone_one();
    daemon.of("kill", &ended);
    let before = [vmms(&fixture), backends(&fixture)];
    daemon.kill();
    eventually("no zygote", || zygotes(&fixture).is_empty());

    let mut daemon = Daemon::start(&fixture);
    assert_eq!([vmms(&fixture), backends(&fixture)], before);
    assert_eq!(daemon.opened["taken"].as_object().unwrap().len(), 3);
    let list = daemon.ask("list", json!({}));
    let list: Vec<(String, String)> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|it| (text(&it["id"]), text(&it["phase"])))
        .collect();
    let expected = [
        (&used, "running"),
        (&machine, "ready"),
        (&fresh_id, "ready"),
        (&ended, "stopped"),
    ];
    assert_eq!(
        list,
        expected.map(|(id, phase)| (id.clone(), phase.to_owned()))
    );
    let found = daemon.of("inspect", &fresh_id);
    for field in [
        "pid",
        "labels",
        "timeline_us",
        "cgroup",
        "created_ms",
        "timeout_s",
        "memory_mib",
    ] {
        assert_eq!(found[field], fresh[field], "{field}");
    }
    assert_eq!(found["recovered"], true);
    assert_eq!(daemon.sh(&fresh_id, "echo $A")["stdout"], "1\n");
    // New ones come from the backends that are there.
    let (clone, boot) = (daemon.clone_one(), daemon.boot_one());
    assert_eq!(backends(&fixture), before[1]);
    for id in [&used, &machine, &fresh_id, &clone, &boot] {
        assert_eq!(daemon.of("stop", id), Value::Null);
        assert_eq!(daemon.of("inspect", id)["phase"], "stopped");
    }
    daemon.eventually_empty();
    daemon.ask("close-lines", json!({}));
    eventually("no backend", || backends(&fixture).is_empty());
}

#[test]
fn a_daemon_that_ends_orderly_leaves_sandboxes_alone_as_well() {
    let fixture = with_template();
    let mut daemon = Daemon::start(&fixture);
    let id = daemon.clone_one();
    daemon.close();
    assert_eq!(vmms(&fixture).len(), 1);
    let mut daemon = Daemon::start(&fixture);
    assert_eq!(daemon.sh(&id, "echo on")["stdout"], "on\n");
    // Nobody else may be at work there meanwhile.
    let second = Daemon::start(&fixture);
    let error = text(&second.opened["error"]);
    assert!(error.contains("another daemon"), "{error}");
}

#[test]
fn half_made_ones_are_buried_wherever_the_daemon_was_killed() {
    let fixture = with_template();
    for source in [json!({"template": "t"}), json!({"image": "img"})] {
        for step in ["slot", "fork", "running", "ready"] {
            let mut daemon = Daemon::start(&fixture);
            let survivor = daemon.clone_one();
            daemon.kill();
            let mut daemon = Daemon::start_with(&fixture, &[("RUNDLET_DIE_AT", step)]);
            let wish = json!({"key": step, "wish": {"source": source}});
            daemon.request("create", wish.clone());
            daemon.await_death();

            let mut daemon = Daemon::start(&fixture);
            eventually("one sandbox", || vmms(&fixture).len() == 1);
            assert_eq!(entries(&fixture.path("run/serve/s")).len(), 1, "{step}");
            assert_eq!(daemon.sh(&survivor, "echo on")["stdout"], "on\n");
            let list = daemon.ask("list", json!({}));
            let last = list.as_array().unwrap().last().unwrap();
            if last["id"] != survivor.as_str() {
                assert_eq!(last["phase"], "failed", "{step}: {last}");
                assert!(text(&last["reason"]).contains("while it started"), "{last}");
            }
            // Who was told nothing asks again.
            let again = daemon.ask("create", wish);
            assert_eq!(again["fresh"], true, "{step}: {again}");
            for id in [survivor, text(&again["detail"]["id"])] {
                daemon.ask("remove", json!({"id": id, "force": true}));
            }
            daemon.eventually_empty();
            daemon.close();
        }
    }
}

#[test]
fn a_burst_may_be_cut_off_at_any_moment() {
    let fixture = with_template();
    let mut ready = std::collections::BTreeSet::new();
    for round in 0..6 {
        let mut daemon = Daemon::start(&fixture);
        let wish = json!({"wish": {"source": {"template": "t"}}});
        let tags: Vec<u64> = (0..8)
            .map(|_| daemon.request("create", wish.clone()))
            .collect();
        for tag in tags.iter().take(round) {
            let created = daemon.answer(*tag);
            ready.insert(text(&created["detail"]["id"]));
        }
        daemon.kill();
        let mut daemon = Daemon::start(&fixture);
        let list = daemon.ask("list", json!({}));
        let mut living = 0;
        for summary in list.as_array().unwrap() {
            match summary["phase"].as_str().unwrap() {
                "ready" => {
                    living += 1;
                    assert_eq!(
                        daemon.sh(&text(&summary["id"]), "echo on")["stdout"],
                        "on\n"
                    );
                }
                "running" => living += 1,
                phase => {
                    assert_eq!(phase, "failed", "{summary}");
                    // Whoever was told of it, has it.
                    assert!(!ready.contains(&text(&summary["id"])), "{summary}");
                }
            }
        }
        eventually("no more VMMs than sandboxes", || {
            vmms(&fixture).len() == living
        });
        assert_eq!(entries(&fixture.path("run/serve/s")).len(), living);
        assert!(backends(&fixture).len() <= 1);
        let stats = daemon.ask("stats", json!({}));
        assert_eq!(stats["free"], 64 - living, "{stats}");
    }
    let mut daemon = Daemon::start(&fixture);
    for summary in daemon.ask("list", json!({})).as_array().unwrap() {
        daemon.ask("remove", json!({"id": summary["id"], "force": true}));
    }
    daemon.eventually_empty();
    assert!(entries(&fixture.path("run/serve/ended")).is_empty());
}

#[test]
fn what_ended_meanwhile_has_failed() {
    let fixture = with_template();
    let mut daemon = Daemon::start(&fixture);
    let (lost, kept) = (daemon.clone_one(), daemon.boot_one());
    let pid = daemon.of("inspect", &lost)["pid"].clone();
    daemon.kill();
    kill(&pid);
    let mut daemon = Daemon::start(&fixture);
    let (phase, reason) = daemon.end_of(&lost);
    assert_eq!(phase, "failed");
    assert!(reason.contains("while no daemon was there"), "{reason}");
    assert_eq!(daemon.sh(&kept, "echo on")["stdout"], "on\n");
    daemon.kill();
    for pid in backends(&fixture) {
        kill(&json!(pid));
    }
    let mut daemon = Daemon::start(&fixture);
    let (phase, reason) = daemon.end_of(&kept);
    assert_eq!(phase, "failed");
    assert!(reason.contains("block backend"), "{reason}");
    daemon.eventually_empty();
    // On a busy machine the killed ones were still ending when they were found.
    let lines = || entries(&fixture.path("run/serve/lines"));
    eventually("their lines have gone", || lines().is_empty());
    let id = daemon.boot_one();
    assert_eq!(daemon.sh(&id, "echo on")["stdout"], "on\n");
}

#[test]
fn a_backend_that_was_not_written_down_is_ended() {
    let fixture = with_template();
    let mut daemon = Daemon::start(&fixture);
    let id = daemon.clone_one();
    daemon.of("kill", &id);
    daemon.kill();
    let lines = entries(&fixture.path("run/serve/lines"));
    fs::remove_file(lines[0].join("line.json")).unwrap();
    assert_eq!(backends(&fixture).len(), 1);
    let mut daemon = Daemon::start(&fixture);
    assert!(backends(&fixture).is_empty());
    assert!(entries(&fixture.path("run/serve/lines")).is_empty());
    daemon.clone_one();
}

#[test]
fn a_template_that_was_built_again_gets_a_line_of_its_own() {
    let fixture = with_template();
    let mut daemon = Daemon::start(&fixture);
    let old = daemon.clone_one();
    daemon.kill();
    // Nobody locks it now.
    let output = fixture.rundlet(&["template", "build", "--memory", "64", "img", "t"]);
    assert!(output.status.success(), "{output:?}");
    let mut daemon = Daemon::start(&fixture);
    let ran = daemon.sh(&old, "echo on");
    assert_eq!(ran["stdout"], "on\n", "{ran}");
    let new = daemon.create(&json!({"source": {"template": "t"}}));
    assert_eq!(new["memory_mib"], 64);
    assert_eq!(backends(&fixture).len(), 2);
    daemon.of("kill", &old);
    daemon.ask("close-lines", json!({}));
    assert_eq!(backends(&fixture).len(), 1);
}

#[test]
fn records_of_another_version_are_not_thrown_away() {
    let fixture = Fixture::new();
    let mut daemon = Daemon::start(&fixture);
    let id = daemon.boot_one();
    daemon.kill();
    let path = fixture.path("run/serve/s").join(&id).join("record.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replacen("\"version\":1", "\"version\":7", 1)).unwrap();
    let daemon = Daemon::start(&fixture);
    let error = daemon.opened["error"].as_str().unwrap();
    assert!(
        error.contains("version 7") && error.contains(&id),
        "{error}"
    );
    assert_eq!(vmms(&fixture).len(), 1);
}
