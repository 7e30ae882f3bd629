use super::*;

fn wish() -> CreateSandbox {
    serde_json::from_str(r#"{"source":{"image":"debian"}}"#).unwrap()
}

/// The field that an error names.
fn field<T: std::fmt::Debug>(result: Result<T, HostError>) -> String {
    match result.unwrap_err() {
        HostError::Invalid { field, .. } => field,
        other => panic!("{other}"),
    }
}

#[test]
fn a_plain_wish_gets_the_defaults() {
    let wish = wish();
    check_wish(&wish).unwrap();
    assert_eq!(
        named(&wish).unwrap(),
        Named::Image("debian:latest".parse().unwrap())
    );
    let size = boot_size(&wish).unwrap();
    assert_eq!(
        (size.memory_mib, size.vcpus, size.scratch_mib),
        (256, 1, 1024)
    );
    let limits = limits(&wish.limits, &Limits::default(), 256).unwrap();
    assert_eq!(limits, Limits::default());
}

#[test]
fn every_refusal_names_its_field() {
    let with = |change: fn(&mut CreateSandbox)| {
        let mut wish = wish();
        change(&mut wish);
        wish
    };
    let source = with(|it| it.source = Source::Image("No Name".into()));
    assert_eq!(field(named(&source)), "source.image");
    let source = with(|it| it.source = Source::Template(String::new()));
    assert_eq!(field(named(&source)), "source.template");
    for (change, named) in [
        (with(|it| it.memory_mib = Some(63)), "memory_mib"),
        (with(|it| it.memory_mib = Some(65537)), "memory_mib"),
        (with(|it| it.vcpus = Some(0)), "vcpus"),
        (with(|it| it.vcpus = Some(17)), "vcpus"),
        (with(|it| it.scratch_mib = Some(15)), "scratch_mib"),
    ] {
        assert_eq!(field(boot_size(&change)), named);
    }
    for (change, named) in [
        (with(|it| it.timeout_s = Some(0)), "timeout_s"),
        (
            with(|it| drop(it.labels.insert("a b".into(), String::new()))),
            "labels",
        ),
        (
            with(|it| drop(it.labels.insert("a".into(), "x".repeat(256)))),
            "labels.a",
        ),
        (
            with(|it| it.labels = (0..33).map(|n| (n.to_string(), String::new())).collect()),
            "labels",
        ),
        (
            with(|it| drop(it.env.insert("A=B".into(), String::new()))),
            "env",
        ),
        (
            with(|it| drop(it.env.insert("A".into(), "\0".into()))),
            "env.A",
        ),
        (
            with(|it| drop(it.env.insert("A".into(), "x".repeat(65536)))),
            "env",
        ),
    ] {
        assert_eq!(field(check_wish(&change)), named);
    }
}

#[test]
fn the_borders_themselves_are_possible() {
    let mut wish = wish();
    wish.timeout_s = Some(1);
    wish.memory_mib = Some(64);
    wish.vcpus = Some(16);
    wish.scratch_mib = Some(16);
    wish.labels = (0..32)
        .map(|n| (format!("a.b/c-d_{n}"), "x".repeat(255)))
        .collect();
    wish.env = [("A".to_owned(), "x".repeat(65535))].into();
    check_wish(&wish).unwrap();
    boot_size(&wish).unwrap();
}

#[test]
fn a_clone_has_its_template_s_size_and_no_other() {
    let size = Size {
        memory_mib: 128,
        vcpus: 2,
        scratch_mib: 512,
    };
    let mut wish = wish();
    check_clone(&wish, size).unwrap();
    wish.memory_mib = Some(128);
    check_clone(&wish, size).unwrap();
    wish.vcpus = Some(1);
    assert_eq!(field(check_clone(&wish, size)), "vcpus");
    wish.vcpus = None;
    wish.scratch_mib = Some(1024);
    assert_eq!(field(check_clone(&wish, size)), "scratch_mib");
    wish.memory_mib = Some(256);
    assert_eq!(field(check_clone(&wish, size)), "memory_mib");
}

#[test]
fn wished_limits_come_before_the_node_s() {
    let defaults = Limits {
        cpu_millis: Some(500),
        memory_mib: Some(200),
        pids: Some(64),
        io: vec!["8:0 rbps=1".into()],
    };
    let mut wish = Limits::default();
    let all = limits(&wish, &defaults, 128).unwrap();
    assert_eq!(all, defaults);
    // A guest larger than the default was meant for.
    assert_eq!(limits(&wish, &defaults, 256).unwrap().memory_mib, Some(272));
    wish.memory_mib = Some(143);
    assert_eq!(field(limits(&wish, &defaults, 128)), "limits.memory_mib");
    wish.memory_mib = Some(144);
    wish.cpu_millis = Some(10);
    let some = limits(&wish, &defaults, 128).unwrap();
    assert_eq!(
        (some.memory_mib, some.cpu_millis, some.pids),
        (Some(144), Some(10), Some(64))
    );
}

#[test]
fn keys_are_short_and_printable() {
    check_key("a1b2-c3").unwrap();
    for key in ["", "a b", "\n", "\u{e4}", &"x".repeat(256)] {
        assert_eq!(field(check_key(key)), "Idempotency-Key");
    }
}
