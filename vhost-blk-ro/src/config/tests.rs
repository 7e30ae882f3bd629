use super::*;

fn problem(text: &str) -> String {
    format!("{:#}", anyhow::Error::new(Config::parse(text).unwrap_err()))
}

fn with_disk(disk: &str) -> String {
    format!(r#"{{"listeners": [{{"socket": "/run/x.sock", "disk": {disk}}}]}}"#)
}

#[test]
fn the_full_form_is_understood() {
    let config = Config::parse(
        r#"{ "listeners": [
              {"socket": "/run/root.sock", "disk": {"image": {"path": "/x.erofs"}}},
              {"socket": "/run/scratch.sock", "trusted_front_end": true,
               "disk": {"scratch": {"template": "/t.img", "directory": "/var/s",
                                    "flush": "durable",
                                    "resumes": true, "keep": "/k/scratch.img"},
                        "serial": "data"}} ],
             "queues": 2, "poll_us": 0 }"#,
    )
    .unwrap();
    assert_eq!((config.queues, config.poll), (2, Duration::ZERO));
    let [root, scratch] = &config.listeners[..] else {
        panic!("two listeners")
    };
    assert_eq!(
        root.disk,
        DiskConfig::Image {
            path: "/x.erofs".into()
        }
    );
    assert_eq!(
        (root.serial, root.trust),
        (Serial::new("root").unwrap(), Trust::No)
    );
    assert_eq!(
        (scratch.serial, scratch.trust),
        (Serial::new("data").unwrap(), Trust::Yes)
    );
    let DiskConfig::Scratch { flush, keep, .. } = &scratch.disk else {
        panic!("a scratch")
    };
    assert_eq!(*flush, Flush::Durable);
    assert_eq!(keep.as_deref(), Some("/k/scratch.img".as_ref()));
    assert!(root.disk.resumes() && scratch.disk.resumes());
}

#[test]
fn volatile_and_one_queue_are_the_defaults() {
    let text = with_disk(r#"{"scratch": {"template": "/t", "directory": "/d"}}"#);
    let config = Config::parse(&text).unwrap();
    assert_eq!(config.queues, 1);
    let scratch = &config.listeners[0];
    assert_eq!(scratch.serial, Serial::new("scratch").unwrap());
    assert!(matches!(
        &scratch.disk,
        DiskConfig::Scratch {
            flush: Flush::Volatile,
            resumes: false,
            keep: None,
            ..
        }
    ));
    assert!(!scratch.disk.resumes());
}

#[test]
fn every_error_names_its_field() {
    let image = r#"{"image": {"path": "/x"}}"#;
    let long = "x".repeat(108);
    let table = [
        (r#"{"listeners": []}"#.to_owned(), "listeners: must name"),
        (with_disk("{}"), "listeners[0].disk: must have exactly one"),
        (
            with_disk(
                r#"{"image": {"path": "/x"}, "scratch": {"template": "/t", "directory": "/d"}}"#,
            ),
            "listeners[0].disk: must have exactly one",
        ),
        (
            with_disk(r#"{"image": {"path": "/x", "mode": 1}}"#),
            "unknown field `mode`",
        ),
        (
            with_disk(r#"{"image": {"path": "/x"}, "serial": "123456789012345678901"}"#),
            "listeners[0].disk.serial",
        ),
        (
            with_disk(r#"{"scratch": {"template": "/t", "directory": "/d", "keep": "k.img"}}"#),
            "listeners[0].disk.scratch.keep: must be an absolute path",
        ),
        (
            with_disk(r#"{"scratch": {"template": "/t", "directory": "/d", "resumes": 1}}"#),
            "expected a boolean",
        ),
        (
            with_disk(r#"{"scratch": {"template": "/t", "directory": "/d", "flush": "never"}}"#),
            "unknown variant `never`",
        ),
        (
            format!(r#"{{"listeners": [{{"socket": "{long}", "disk": {image}}}]}}"#),
            "listeners[0].socket: is a path",
        ),
        (
            format!(
                r#"{{"listeners": [{{"socket": "/a", "disk": {image}}}, {{"socket": "/a", "disk": {image}}}]}}"#
            ),
            "listeners[1].socket: is already in use",
        ),
        (
            format!(r#"{{"queues": 17, "listeners": [{{"socket": "/a", "disk": {image}}}]}}"#),
            "queues: must be 1 to 16",
        ),
        (
            format!(r#"{{"poll_us": 500, "listeners": [{{"socket": "/a", "disk": {image}}}]}}"#),
            "poll_us: must be 0 to 200",
        ),
    ];
    for (text, expected) in table {
        let said = problem(&text);
        assert!(said.contains(expected), "{text}\n{said}");
    }
}

#[test]
fn figures_have_a_socket_of_their_own() {
    let text = |figures: &str| {
        let disk = r#"{"image": {"path": "/x"}}"#;
        format!(
            r#"{{"listeners": [{{"socket": "/run/x.sock", "disk": {disk}}}], "figures": "{figures}"}}"#
        )
    };
    let config = Config::parse(&text("/run/figures.sock")).unwrap();
    assert_eq!(
        config.figures.as_deref(),
        Some("/run/figures.sock".as_ref())
    );
    assert!(
        Config::parse(&with_disk(r#"{"image": {"path": "/x"}}"#))
            .unwrap()
            .figures
            .is_none()
    );
    assert!(problem(&text("")).contains("figures: is a path of 1 to 107"));
    assert!(problem(&text("/run/x.sock")).contains("figures: is already in use"));
}
