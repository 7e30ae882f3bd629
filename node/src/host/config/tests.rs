use std::fs;

use super::*;

fn parse(json: &str) -> Result<Config, String> {
    Config::parse(json.as_bytes(), Path::new("c.json")).map_err(|error| error.to_string())
}

#[test]
fn everything_has_a_default() {
    let config = Config::load(None).unwrap();
    assert_eq!(config.socket.path, config.run.join("api.sock"));
    assert_eq!(config.socket.mode, 0o660);
    assert_eq!(config.cgroup.slots, config.limits.sandboxes);
    assert_eq!(config.cgroup.wait_ms, 0);
    assert_eq!(config.limits.ended_records, 1000);
    assert_eq!(config.limits.defaults, Limits::default());
    assert_eq!((config.jail, config.metrics.listen), (None, None));
    assert_eq!(config.log, "info");
}

#[test]
fn every_field_is_taken() {
    let config = parse(
        r#"{
            "run": "/r", "store": "/s",
            "socket": {"path": "/r/a", "mode": "0600", "group": "g"},
            "cgroup": {"root": "/sys/fs/cgroup/x", "slots": 200, "wait_ms": 250},
            "limits": {
                "sandboxes": 150, "memory_mib": 4096, "starts_at_once": 4, "start_queue": 0,
                "start_deadline_s": 5, "first_command_s": 9, "ended_records": 7,
                "defaults": {"cpu_millis": 1000, "memory_mib": 512, "pids": 64, "io": ["8:0 rbps=1"]}
            },
            "jail": {"first_uid": 200000, "uids": 200},
            "metrics": {"listen": "127.0.0.1:9464"},
            "log": "warn,rundlet_node=debug"
        }"#,
    )
    .unwrap();
    assert_eq!(config.run, Path::new("/r"));
    assert_eq!(config.store, Path::new("/s"));
    assert_eq!(config.socket.mode, 0o600);
    assert_eq!(config.socket.group.as_deref(), Some("g"));
    assert_eq!((config.cgroup.slots, config.cgroup.wait_ms), (200, 250));
    let limits = &config.limits;
    assert_eq!((limits.sandboxes, limits.memory_mib), (150, Some(4096)));
    assert_eq!((limits.starts_at_once, limits.start_queue), (4, 0));
    assert_eq!((limits.start_deadline_s, limits.ended_records), (5, 7));
    assert_eq!(limits.first_command_s, 9);
    assert_eq!(limits.defaults.io, ["8:0 rbps=1"]);
    let jail = config.jail.unwrap();
    assert_eq!((jail.first_uid, jail.uids), (200_000, 200));
    assert_eq!(config.metrics.listen.unwrap().port(), 9464);
}

#[test]
fn an_error_names_the_file_and_the_field() {
    for (json, words) in [
        (r#"{"slots": 3}"#, "c.json: slots: unknown field"),
        (r#"{"cgroup": {"slot": 3}}"#, "cgroup.slot: unknown field"),
        (
            r#"{"cgroup": {"slots": "3"}}"#,
            "cgroup.slots: invalid type",
        ),
        (
            r#"{"cgroup": {"slots": 0}}"#,
            "cgroup.slots: is 0, 1 to 16384",
        ),
        (
            r#"{"cgroup": {"slots": -1}}"#,
            "cgroup.slots: invalid value",
        ),
        (
            r#"{"cgroup": {"root": "x"}}"#,
            "cgroup.root: x is not an absolute",
        ),
        (r#"{"run": "/a/../b"}"#, "run: /a/../b is not"),
        (
            r#"{"cgroup": {"slots": 5}, "limits": {"sandboxes": 6}}"#,
            "limits.sandboxes: is 6",
        ),
        (
            r#"{"limits": {"start_deadline_s": 0}}"#,
            "limits.start_deadline_s: is 0",
        ),
        (
            r#"{"limits": {"defaults": {"pids": 1}}}"#,
            "limits.defaults.pids: is 1",
        ),
        (
            r#"{"limits": {"defaults": {"io": ["x"]}}}"#,
            "limits.defaults.io[0]",
        ),
        (r#"{"socket": {"mode": "0999"}}"#, "socket.mode: \"0999\""),
        (r#"{"socket": {"mode": "1777"}}"#, "socket.mode: \"1777\""),
        (r#"{"socket": {"group": ""}}"#, "socket.group: is empty"),
        (
            r#"{"jail": {"first_uid": 1000}}"#,
            "jail: missing field `uids`",
        ),
        (
            r#"{"jail": {"first_uid": 0, "uids": 100}}"#,
            "jail.first_uid: is 0",
        ),
        (
            r#"{"jail": {"first_uid": 1000, "uids": 9}}"#,
            "jail.uids: is 9, but cgroup.slots",
        ),
        (
            r#"{"jail": {"first_uid": 4294967200, "uids": 96}}"#,
            "jail.uids: 96 from",
        ),
        (r#"{"metrics": {"listen": "9464"}}"#, "metrics.listen: "),
        (r#"{"log": "inof"}"#, "log: \"inof\" is neither"),
        (r#"{"log": "info,,x=warn"}"#, "log: \"\" is neither"),
        ("{} {}", "after the end"),
        ("", "EOF while parsing"),
    ] {
        let error = parse(json).unwrap_err();
        assert!(error.contains(words), "{json}: {error}");
        assert!(error.starts_with("c.json: "), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
    let long = format!(r#"{{"socket": {{"path": "/{}"}}}}"#, "x".repeat(107));
    assert!(
        parse(&long)
            .unwrap_err()
            .contains("socket.path: has 108 bytes")
    );
    let last = r#"{"jail": {"first_uid": 4294967199, "uids": 96}, "cgroup": {"slots": 96}}"#;
    assert!(parse(last).is_ok());
}

#[test]
fn a_file_that_is_missing_or_endless_is_an_error_with_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let missing = Config::load(Some(&directory.path().join("none.json"))).unwrap_err();
    assert!(missing.to_string().contains("none.json"), "{missing}");
    let endless = Config::load(Some(Path::new("/dev/zero"))).unwrap_err();
    assert!(matches!(endless, ConfigError::Long(_)), "{endless:?}");
    let path = directory.path().join("some.json");
    fs::write(&path, r#"{"log": "debug"}"#).unwrap();
    assert_eq!(Config::load(Some(&path)).unwrap().log, "debug");
}
