//! The life of sandboxes as it should be, and wishes that are refused.

use serde_json::{Value, json};

use super::daemon::{Daemon, backends, entries, text, vmms, with_template};
use super::fixture::{Fixture, eventually};

#[test]
fn a_machine_boots_runs_commands_and_stops() {
    let fixture = Fixture::new();
    let mut daemon = Daemon::start(&fixture);
    let detail = daemon.create(&json!({
        "source": {"image": "img"}, "env": {"A": "1", "B": "2"}, "labels": {"who": "me"},
    }));
    assert_eq!(detail["phase"], "ready", "{detail}");
    assert_eq!(detail["memory_mib"], 256);
    assert_eq!(detail["cgroup"], "pool/slot-0000");
    assert!(detail["pid"].as_u64().is_some());
    let instants = ["slot", "forked", "running", "ready"].map(|name| {
        let at = &detail["timeline_us"][name];
        at.as_u64().unwrap_or_else(|| panic!("{name}: {detail}"))
    });
    assert!(instants.is_sorted(), "{instants:?}");
    let id = text(&detail["id"]);
    let ran = daemon.ask(
        "run",
        json!({"id": id, "script": "cat; echo $A$B; echo no >&2; exit 3", "stdin": "in "}),
    );
    assert_eq!(ran["code"], 3, "{ran}");
    assert_eq!(ran["stdout"], "in 12\n");
    assert_eq!(ran["stderr"], "no\n");
    assert_eq!(daemon.of("inspect", &id)["phase"], "running");
    assert_eq!(daemon.of("stop", &id), Value::Null);
    let detail = daemon.of("inspect", &id);
    assert_eq!(detail["phase"], "stopped", "{detail}");
    assert_eq!(detail["labels"]["who"], "me");
    assert!(detail.get("pid").is_none() && detail.get("cgroup").is_none());
    daemon.eventually_empty();
    let phases: Vec<String> = (0..5)
        .map(|_| text(&daemon.event("sandbox")["to"]))
        .collect();
    assert_eq!(
        phases,
        ["creating", "ready", "running", "stopping", "stopped"]
    );
    let error = daemon.sh(&id, "exit 0");
    assert_eq!(error["error"]["kind"], "ended", "{error}");
    assert_eq!(daemon.of("remove", &id), Value::Null);
    assert_eq!(daemon.of("inspect", &id)["error"]["kind"], "not-found");
    assert_eq!(daemon.event("removed")["id"], id.as_str());
}

#[test]
fn clones_share_a_backend_and_are_started_at_once() {
    let fixture = with_template();
    let mut daemon = Daemon::start(&fixture);
    let wish = json!({"wish": {"source": {"template": "t"}}});
    let tags: Vec<u64> = (0..16)
        .map(|_| daemon.request("create", wish.clone()))
        .collect();
    let mut ids: Vec<String> = tags
        .into_iter()
        .map(|tag| {
            let created = daemon.answer(tag);
            assert_eq!(created["detail"]["phase"], "ready", "{created}");
            assert_eq!(created["detail"]["memory_mib"], 128);
            text(&created["detail"]["id"])
        })
        .collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 16);
    assert_eq!(backends(&fixture).len(), 1);
    let stats = daemon.ask("stats", json!({}));
    assert_eq!(stats["backends"][0]["sandboxes"], 16, "{stats}");
    // The double has always done the same.
    assert_eq!(stats["backends"][0]["reads"], 5, "{stats}");
    assert_eq!(stats["memory"], 16 * 128);
    assert_eq!(stats["phases"]["ready"], 16);
    assert_eq!(daemon.sh(&ids[7], "echo hello")["stdout"], "hello\n");
    // The template is locked while it is used, and no longer.
    let busy = fixture.rundlet(&["template", "rm", "t"]);
    assert!(!busy.status.success());
    for id in &ids {
        assert_eq!(daemon.of("kill", id), Value::Null);
    }
    daemon.eventually_empty();
    daemon.ask("close-lines", json!({}));
    assert!(fixture.rundlet(&["template", "rm", "t"]).status.success());
    assert!(backends(&fixture).is_empty());
    assert!(entries(&fixture.path("run/serve/lines")).is_empty());
}

#[test]
fn one_key_is_one_sandbox() {
    let fixture = with_template();
    let mut daemon = Daemon::start(&fixture);
    let wish = json!({"key": "k", "wish": {"source": {"template": "t"}}});
    let tags: Vec<u64> = (0..4)
        .map(|_| daemon.request("create", wish.clone()))
        .collect();
    let answers: Vec<Value> = tags.into_iter().map(|tag| daemon.answer(tag)).collect();
    let fresh = answers.iter().filter(|it| it["fresh"] == true).count();
    assert_eq!(fresh, 1, "{answers:?}");
    assert!(
        answers
            .iter()
            .all(|it| it["detail"]["id"] == answers[0]["detail"]["id"])
    );
    let other = json!({"key": "k", "wish": {"source": {"image": "img"}}});
    assert_eq!(daemon.ask("create", other)["error"]["kind"], "key-reused");
    // Also of one that has ended, and by another daemon.
    let id = text(&answers[0]["detail"]["id"]);
    daemon.of("kill", &id);
    daemon.kill();
    let mut daemon = Daemon::start(&fixture);
    let again = daemon.ask("create", wish.clone());
    assert_eq!(
        (&again["fresh"], &again["detail"]["phase"]),
        (&json!(false), &json!("stopped"))
    );
    daemon.of("remove", &id);
    assert_eq!(daemon.ask("create", wish)["fresh"], true);
}

#[test]
fn refusals_have_reasons_and_leave_no_record() {
    let fixture = with_template();
    let mut daemon = Daemon::start_with(&fixture, &[("RUNDLET_SLOTS", "2")]);
    for (wish, kind, says) in [
        (
            json!({"source": {"image": "none"}}),
            "not-found",
            "image none:latest",
        ),
        (
            json!({"source": {"template": "none"}}),
            "not-found",
            "template none:latest",
        ),
        (
            json!({"source": {"template": "t"}, "memory_mib": 64}),
            "invalid",
            "memory_mib",
        ),
        (
            json!({"source": {"image": "img"}, "vcpus": 99}),
            "invalid",
            "vcpus",
        ),
        (
            json!({"source": {"image": "img"}, "limits": {"memory_mib": 256}}),
            "invalid",
            "limits.memory_mib",
        ),
    ] {
        let error = daemon.ask("create", json!({ "wish": wish }))["error"].clone();
        assert_eq!(error["kind"], kind, "{error}");
        assert!(text(&error["text"]).contains(says), "{error}");
    }
    let (first, _) = (daemon.clone_one(), daemon.clone_one());
    let wish = json!({"wish": {"source": {"template": "t"}}});
    let error = daemon.ask("create", wish)["error"].clone();
    assert_eq!(error["kind"], "full", "{error}");
    assert!(text(&error["text"]).contains("2 slots"), "{error}");
    assert_eq!(daemon.ask("list", json!({})).as_array().unwrap().len(), 2);
    let error = daemon.of("remove", &first)["error"].clone();
    assert_eq!(error["kind"], "wrong-phase", "{error}");
    assert_eq!(
        daemon.ask("remove", json!({"id": first, "force": true})),
        Value::Null
    );
    eventually("a free slot", || {
        daemon.ask("stats", json!({}))["free"] == 1
    });
    daemon.clone_one();
}

#[test]
fn a_sandbox_goes_with_its_command_or_its_time() {
    let fixture = with_template();
    let mut daemon = Daemon::start(&fixture);
    let template = json!({"template": "t"});
    let detail = daemon.create(&json!({
        "source": template, "auto_remove": true, "env": {"A": "1"},
    }));
    let id = text(&detail["id"]);
    assert_eq!(daemon.sh(&id, "exit 0")["code"], 0);
    assert_eq!(daemon.of("open", &id), json!({"A": "1"}));
    assert_eq!(daemon.of("inspect", &id)["commands"], 1);
    daemon.of("let-go", &id);
    assert_eq!(daemon.event("removed")["id"], id.as_str());
    daemon.eventually_empty();
    let detail = daemon.create(&json!({"source": template, "timeout_s": 1}));
    let (phase, reason) = daemon.end_of(&text(&detail["id"]));
    assert_eq!(phase, "stopped");
    assert!(reason.contains("1 seconds"), "{reason}");
    daemon.eventually_empty();
}

#[test]
fn only_so_many_of_the_ended_are_remembered() {
    let fixture = with_template();
    let mut daemon = Daemon::start_with(&fixture, &[("RUNDLET_ENDED", "2")]);
    let ids: Vec<String> = (0..4).map(|_| daemon.clone_one()).collect();
    for id in &ids {
        daemon.of("kill", id);
    }
    // A moment after the end that makes one too many.
    let mut forgotten: Vec<String> = (0..2)
        .map(|_| text(&daemon.event("removed")["id"]))
        .collect();
    forgotten.sort_by_key(|id| ids.iter().position(|it| it == id));
    assert_eq!(forgotten, ids[..2]);
    let listed = |daemon: &mut Daemon<'_>| -> Vec<String> {
        let list = daemon.ask("list", json!({}));
        list.as_array()
            .unwrap()
            .iter()
            .map(|it| text(&it["id"]))
            .collect()
    };
    assert_eq!(listed(&mut daemon), ids[2..]);
    daemon.close();
    let mut daemon = Daemon::start_with(&fixture, &[("RUNDLET_ENDED", "1")]);
    assert_eq!(listed(&mut daemon), ids[3..]);
    assert_eq!(entries(&fixture.path("run/serve/ended")).len(), 1);
}

#[test]
fn a_host_without_descriptors_refuses_and_goes_on() {
    let fixture = with_template();
    let mut daemon = Daemon::start_poor(&fixture, 48);
    let mut made = Vec::new();
    let wish = json!({"wish": {"source": {"template": "t"}}});
    let error = loop {
        let created = daemon.ask("create", wish.clone());
        match created["detail"]["id"].as_str() {
            Some(id) => made.push(id.to_owned()),
            None => break created["error"].clone(),
        }
        assert!(made.len() < 60, "never refused");
    };
    assert!(!made.is_empty(), "{error}");
    assert!(
        matches!(error["kind"].as_str(), Some("full" | "start" | "io")),
        "{error}"
    );
    eventually("as many VMMs as sandboxes", || {
        vmms(&fixture).len() == made.len()
    });
    for id in &made {
        assert_eq!(daemon.of("kill", id), Value::Null);
    }
    daemon.eventually_empty();
    daemon.clone_one();
}
