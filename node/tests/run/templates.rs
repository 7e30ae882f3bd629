//! Templates, as a user makes and uses them.

use std::fs;
use std::io::Read;
use std::process::{Output, Stdio};

use super::fixture::{Fixture, code, eventually, stderr, stdout};

fn build(fixture: &Fixture, options: &[&str], warm_up: &[&str]) -> Output {
    let mut args = vec!["template", "build"];
    args.extend_from_slice(options);
    args.extend(["img", "t"]);
    if !warm_up.is_empty() {
        args.push("--");
        args.extend_from_slice(warm_up);
    }
    fixture.rundlet(&args)
}

fn run(fixture: &Fixture, options: &[&str], script: &str) -> Output {
    fixture.rundlet(&in_clone(options, script))
}

fn in_clone<'a>(options: &[&'a str], script: &'a str) -> Vec<&'a str> {
    let mut args = vec!["run", "--template", "t"];
    args.extend_from_slice(options);
    args.extend(["--", "sh", "-c", script]);
    args
}

fn builds(fixture: &Fixture) -> usize {
    fs::read_dir(fixture.path("store/templates/builds"))
        .unwrap()
        .count()
}

fn nothing_is_left(fixture: &Fixture) {
    assert!(fixture.is_clean(), "{:?}", fixture.processes());
    let tmp = fs::read_dir(fixture.path("store/tmp")).unwrap();
    assert_eq!(tmp.count(), 0);
}

#[test]
fn a_template_is_built_listed_run_and_removed() {
    let fixture = Fixture::new();
    let output = build(&fixture, &["--memory", "128"], &["sh", "-c", "echo hello"]);
    assert!(output.status.success(), "{output:?}");
    assert!(stdout(&output).starts_with("t:latest "), "{output:?}");
    assert_eq!(stderr(&output), "");
    nothing_is_left(&fixture);

    let output = run(&fixture, &[], "echo out; echo err >&2; exit 7");
    assert_eq!(stdout(&output), "out\n", "{output:?}");
    assert_eq!(stderr(&output), "err\n");
    assert_eq!(output.status.code(), Some(7));
    nothing_is_left(&fixture);

    let listed = stdout(&fixture.rundlet(&["template", "ls"]));
    assert!(listed.contains("t:latest"), "{listed}");
    assert!(listed.contains("sh -c echo hello"), "{listed}");
    let inspected = fixture.rundlet(&["template", "inspect", "t"]);
    let inspected: serde_json::Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert_eq!(inspected["recipe"]["memory_mib"], 128);
    assert_eq!(inspected["recipe"]["image"], "img:latest");
    assert_eq!(inspected["recipe"]["warm_up"]["argv"][2], "echo hello");
    for digest in ["kernel", "initrd", "image"] {
        let digest = inspected["binding"][digest].as_str().unwrap();
        assert!(digest.starts_with("sha256-"), "{digest}");
    }
    assert_eq!(inspected["files"][1]["name"], "memory");
    for (place, name) in [(5, "touched"), (6, "first-command")] {
        assert_eq!(
            inspected["files"][place]["name"], name,
            "a clone was tried, and ran a command"
        );
    }

    let output = fixture.rundlet(&["image", "rm", "img"]);
    assert!(
        stderr(&output).contains("needed by template t:latest"),
        "{output:?}"
    );
    assert!(fixture.rundlet(&["template", "rm", "t"]).status.success());
    assert!(fixture.rundlet(&["image", "rm", "img"]).status.success());
    let output = run(&fixture, &[], "true");
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr(&output).contains("there is no template t:latest"));
}

#[test]
fn a_warm_up_that_stays_is_ready_with_its_line() {
    let fixture = Fixture::new();
    let script = "echo not yet; echo up; exec sleep 5";
    let output = build(&fixture, &["--ready-line", "up"], &["sh", "-c", script]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(run(&fixture, &[], "exit 3").status.code(), Some(3));
}

#[test]
fn a_bad_warm_up_is_told_with_its_words_and_leaves_nothing() {
    let fixture = Fixture::new();
    let cases: [(&[&str], &str, &[&str]); 5] = [
        (
            &[],
            "echo one; echo two >&2; exit 3",
            &["ended with exit code 3", "| one", "| two"],
        ),
        (&[], "kill -9 $$", &["ended with signal 9"]),
        (
            &["--ready-line", "up"],
            "echo down",
            &["exit code 0 before it had printed its ready line", "| down"],
        ),
        (
            &["--ready-line", "up", "--timeout", "1"],
            "echo up and down; exec sleep 100",
            &["not done after 1 seconds", "| up and down"],
        ),
        (
            &["--user", "nobody-of-that-name"],
            "true",
            &["nobody-of-that-name"],
        ),
    ];
    for (options, script, words) in cases {
        let output = build(&fixture, options, &["sh", "-c", script]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let error = stderr(&output);
        for word in words {
            assert!(error.contains(word), "{word}: {error}");
        }
        assert_eq!(builds(&fixture), 0);
        nothing_is_left(&fixture);
    }
    let output = build(&fixture, &[], &["/nonexistent"]);
    assert_eq!(output.status.code(), Some(127), "{output:?}");
}

#[test]
fn what_cannot_be_captured_leaves_nothing_and_the_old_one_stays() {
    let fixture = Fixture::new();
    assert!(build(&fixture, &[], &[]).status.success());
    let output = fixture
        .command(&["template", "build", "img", "t"])
        .env("RUNDLET_DOUBLE", "no-capture")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("double: no room"), "{output:?}");
    nothing_is_left(&fixture);
    assert_eq!(run(&fixture, &[], "exit 3").status.code(), Some(3));
}

#[test]
fn a_build_that_is_killed_leaves_no_template() {
    let fixture = Fixture::new();
    let mark = fixture.path("warming");
    let script = format!("echo >{}; exec sleep 60", mark.display());
    let args = ["template", "build", "img", "t", "--", "sh", "-c", &script];
    let mut child = fixture.command(&args).spawn().unwrap();
    eventually("the warm-up", || mark.exists());
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("no leftovers", || fixture.is_clean());
    assert_eq!(builds(&fixture), 0);
    assert!(build(&fixture, &[], &[]).status.success());
    nothing_is_left(&fixture);
}

#[test]
fn a_template_that_no_longer_fits_is_built_again_once() {
    let fixture = Fixture::new();
    assert!(build(&fixture, &[], &[]).status.success());
    fs::write(fixture.path("guest/initrd.cpio"), "a newer one").unwrap();
    let output = run(&fixture, &["--timeline"], "exit 3");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let error = stderr(&output);
    assert!(
        error.starts_with("rundlet: template t:latest is built again: double: another binding"),
        "{error}"
    );
    assert_eq!(error.lines().count(), 2, "{error}");
    assert_eq!(builds(&fixture), 1);
    let output = run(&fixture, &[], "exit 4");
    assert_eq!(output.status.code(), Some(4));
    assert_eq!(stderr(&output), "");

    let memory = fixture.path("store/templates/t:latest/memory");
    fs::write(memory, "short").unwrap();
    let output = run(&fixture, &[], "exit 5");
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    assert!(stderr(&output).contains("double: no memory"), "{output:?}");

    let output = fixture
        .command(&in_clone(&[], "exit 6"))
        .env("RUNDLET_DOUBLE", "stale")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(125));
    let error = stderr(&output);
    assert!(error.contains("although it was just built"), "{error}");
    nothing_is_left(&fixture);
}

#[test]
fn a_template_in_use_stays_and_a_new_one_takes_its_name() {
    let fixture = Fixture::new();
    assert!(build(&fixture, &[], &[]).status.success());
    let mut child = fixture
        .command(&in_clone(&["-i"], "echo up; read line"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0; 3];
    let out = child.stdout.as_mut().unwrap();
    out.read_exact(&mut line).unwrap_or_default();
    let output = fixture.rundlet(&["template", "rm", "t"]);
    assert_eq!(output.status.code(), Some(1));
    let error = stderr(&output);
    assert!(
        error.contains(&format!("process {}", child.id())),
        "{error}"
    );
    assert!(build(&fixture, &[], &[]).status.success());
    assert_eq!(builds(&fixture), 2);
    drop(child.stdin.take());
    assert!(code(&mut child).is_some());
    assert_eq!(builds(&fixture), 1);
    nothing_is_left(&fixture);
}

#[test]
fn the_timeline_of_a_clone_has_its_instants() {
    let fixture = Fixture::new();
    assert!(build(&fixture, &[], &[]).status.success());
    let output = run(&fixture, &["--timeline", "--stats"], "echo x");
    let error = stderr(&output);
    let line = error.lines().next().unwrap();
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    let timeline = &line["timeline"];
    let order = [
        "request",
        "prepared",
        "backend_listening",
        "vmm_started",
        "running",
        "ready",
        "exec_started",
        "exit",
        "stopped",
    ];
    let instants: Vec<u64> = order
        .map(|name| timeline["node_us"][name].as_u64().unwrap())
        .to_vec();
    assert!(instants.is_sorted(), "{timeline}");
    assert_eq!(timeline["vmm_us"]["running"], 1000);
    assert!(timeline["guest_us"]["renewed"].is_u64(), "{timeline}");
}

#[test]
fn what_the_template_decides_is_refused() {
    let fixture = Fixture::new();
    let output = run(&fixture, &["--memory", "128"], "true");
    assert_eq!(output.status.code(), Some(125));
    assert!(
        stderr(&output).contains("--memory is decided by the template"),
        "{output:?}"
    );
    let output = fixture.rundlet(&["template", "build", "img", "Bad"]);
    assert_eq!(output.status.code(), Some(2));
    let output = fixture.rundlet(&["template", "build", "--memory", "1", "img", "t"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("--memory is 1 MiB"), "{output:?}");
}
