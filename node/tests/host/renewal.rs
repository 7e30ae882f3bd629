//! Templates that no longer fit: built again by the daemon, once.

use std::fs;

use serde_json::{Value, json};

use super::daemon::{Daemon, text, with_template};
use super::fixture::Fixture;

/// The id of the build under the name `t`.
fn build(fixture: &Fixture) -> String {
    let target = fs::read_link(fixture.path("store/templates/t:latest")).unwrap();
    target.file_name().unwrap().to_str().unwrap().to_owned()
}

fn new_initrd(fixture: &Fixture) {
    fs::write(fixture.path("guest/initrd.cpio"), "a newer one").unwrap();
}

fn wish() -> Value {
    json!({"wish": {"source": {"template": "t"}}})
}

fn refusal(answer: &Value) -> (String, String) {
    let error = &answer["error"];
    (text(&error["kind"]), text(&error["text"]))
}

#[test]
fn all_who_ask_meanwhile_get_clones_of_one_new_template() {
    let fixture = with_template();
    let mut daemon = Daemon::start(&fixture);
    let old = daemon.clone_one();
    let before = build(&fixture);
    new_initrd(&fixture);
    let tags: Vec<u64> = (0..4).map(|_| daemon.request("create", wish())).collect();
    for tag in tags {
        let created = daemon.answer(tag);
        assert_eq!(created["detail"]["phase"], "ready", "{created}");
    }
    let unfit = daemon.event("template_unfit");
    assert_eq!(unfit["template"], "t:latest");
    assert!(
        text(&unfit["why"]).contains("another kernel or initrd"),
        "{unfit}"
    );
    let rebuilt = daemon.event("template_rebuilt");
    assert!(rebuilt["error"].is_null(), "{rebuilt}");
    assert_ne!(build(&fixture), before);
    assert_eq!(
        daemon.sh(&old, "echo on")["stdout"],
        "on\n",
        "the old one's clone lives on"
    );
    // Once: nothing is built for the next one.
    let after = build(&fixture);
    daemon.clone_one();
    assert_eq!(build(&fixture), after);
}

#[test]
fn one_that_its_vmm_refuses_is_built_again_for_the_sandbox_that_wants_it() {
    let fixture = with_template();
    let mut daemon = Daemon::start(&fixture);
    fs::write(fixture.path("store/templates/t:latest/memory"), "short").unwrap();
    let before = build(&fixture);
    let id = daemon.clone_one();
    assert_eq!(daemon.sh(&id, "echo on")["stdout"], "on\n");
    assert_ne!(build(&fixture), before);
    assert_eq!(daemon.event("template_unfit")["why"], "double: no memory");
    daemon.of("kill", &id);
    daemon.eventually_empty();
    daemon.ask("close-lines", json!({}));
    let builds = fs::read_dir(fixture.path("store/templates/builds")).unwrap();
    assert_eq!(builds.count(), 1, "the damaged one has gone");
}

#[test]
fn one_that_cannot_be_built_is_refused_with_the_reason_and_not_tried_again() {
    let fixture = with_template();
    new_initrd(&fixture);
    let mut daemon = Daemon::start_with(&fixture, &[("RUNDLET_DOUBLE", "no-capture")]);
    for _ in 0..2 {
        let (kind, words) = refusal(&daemon.ask("create", wish()));
        assert_eq!(kind, "invalid", "{words}");
        for part in [
            "another kernel",
            "double: no room",
            "rundlet template build img:latest t:latest",
        ] {
            assert!(words.contains(part), "{part}: {words}");
        }
    }
    let rebuilt = daemon.event("template_rebuilt");
    assert!(
        text(&rebuilt["error"]).contains("double: no room"),
        "{rebuilt}"
    );
    daemon.eventually_empty();
}

#[test]
fn one_that_is_refused_although_it_was_just_built_is_not_built_for_ever() {
    let fixture = with_template();
    let mut daemon = Daemon::start_with(&fixture, &[("RUNDLET_DOUBLE", "stale")]);
    let before = build(&fixture);
    for _ in 0..2 {
        let (kind, words) = refusal(&daemon.ask("create", wish()));
        assert_eq!(
            (&*kind, words.contains("although it was just built")),
            ("invalid", true),
            "{words}"
        );
        assert!(words.contains("double: another processor"), "{words}");
    }
    assert_eq!(build(&fixture), before, "its trial has failed");
    daemon.event("template_unfit");
    daemon.event("template_rebuilt");
    daemon.eventually_empty();
}

#[test]
fn no_more_than_half_of_the_starts_wait_for_it() {
    let fixture = Fixture::new();
    let output = fixture.rundlet(&["template", "build", "--boot-timeout", "5", "img", "t"]);
    assert!(output.status.success(), "{output:?}");
    new_initrd(&fixture);
    // What is built does not come up, and is given up after the five seconds.
    let mut daemon = Daemon::start_with(&fixture, &[("RUNDLET_DOUBLE", "silence")]);
    let tags: Vec<u64> = (0..8).map(|_| daemon.request("create", wish())).collect();
    let mut kinds: Vec<(String, String)> = tags
        .into_iter()
        .map(|tag| refusal(&daemon.answer(tag)))
        .collect();
    kinds.sort();
    // The daemon of these tests starts eight at a time.
    for (place, (kind, words)) in kinds.iter().enumerate() {
        let expected = if place < 4 {
            ("invalid", "was not ready after 5 seconds")
        } else {
            ("late", "others wait for it already")
        };
        assert_eq!(
            (&**kind, words.contains(expected.1)),
            (expected.0, true),
            "{words}"
        );
    }
    daemon.eventually_empty();
}
