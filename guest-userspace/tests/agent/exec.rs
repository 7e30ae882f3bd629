//! Starting commands: what they get, and why some do not start.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use rundlet_protocol::{ExecSpec, ExitStatus, FailureKind};

use crate::client::{Agent, argv, sh};

#[test]
fn exit_codes_come_back() {
    let agent = Agent::start();
    assert_eq!(agent.run(argv(&["true"])).status, ExitStatus::Code(0));
    assert_eq!(agent.run(argv(&["false"])).status, ExitStatus::Code(1));
    for code in [2, 77, 127, 255] {
        let outcome = agent.sh(&format!("exit {code}"));
        assert_eq!(outcome.status, ExitStatus::Code(code));
    }
}

#[test]
fn stdout_and_stderr_are_apart() {
    let outcome = Agent::start().sh("echo one; echo two >&2");
    assert_eq!(
        (&*outcome.stdout, &*outcome.stderr),
        (&b"one\n"[..], &b"two\n"[..])
    );
}

#[test]
fn the_environment_is_the_given_one_and_the_defaults() {
    let agent = Agent::start();
    let mut spec = argv(&["env"]);
    spec.env.insert("COLOUR".into(), "blue = green".into());
    let text = agent.run(spec.clone()).text().to_owned();
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(lines, ["COLOUR=blue = green", "HOME=/root", path]);

    spec.env.insert("HOME".into(), "/elsewhere".into());
    assert!(agent.run(spec).text().contains("HOME=/elsewhere\n"));
}

#[test]
fn stdin_that_is_not_asked_for_is_empty() {
    let outcome = Agent::start().run(argv(&["cat"]));
    assert_eq!((outcome.text(), outcome.status), ("", ExitStatus::Code(0)));
}

#[test]
fn a_program_gets_a_clean_process() {
    let script = "umask; ls -l /proc/self/fd | sed -n 's/.* \\([0-9]*\\) -> .*/\\1/p' | tr '\\n' ' '; \
                  grep -E '^Sig(Blk|Ign):' /proc/self/status; cat /proc/self/oom_score_adj; pwd; \
                  ulimit -n; ps -o pid=,pgid=,sid= -p $$";
    let outcome = Agent::start().sh(script);
    let text = outcome.text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "0022", "{text}");
    // `ls` itself has the directory open as 3.
    assert!(lines[1].starts_with("0 1 2 3 "), "{text}");
    assert!(text.contains("SigBlk:\t0000000000000000"), "{text}");
    assert!(text.contains("SigIgn:\t0000000000000000"), "{text}");
    assert_eq!(&lines[3..6], ["0", "/", "1024"], "{text}");
    let ids: Vec<_> = lines[6].split_ascii_whitespace().collect();
    assert!(ids[0] == ids[1] && ids[1] == ids[2], "{text}");
}

#[test]
fn a_user_comes_with_its_groups_and_owns_its_streams() {
    let agent = Agent::start();
    let as_user = |user: &str, script: &str| {
        let spec = ExecSpec {
            user: Some(user.to_owned()),
            ..sh(script)
        };
        agent.run(spec).text().to_owned()
    };
    let script = "id -u; id -g; id -G; echo $HOME; echo opened > /dev/stdout; echo >&2";
    let lines = "4242\n0\n0\n/\nopened\n";
    assert_eq!(as_user("4242", script), lines);
    assert_eq!(as_user("4242:55", "id -u; id -g; id -G"), "4242\n55\n55\n");
    let nobody = as_user("nobody", "id -un; id -gn; grep CapEff /proc/self/status");
    assert_eq!(nobody, "nobody\nnogroup\nCapEff:\t0000000000000000\n");
}

#[test]
fn fields_that_are_wrong_are_named() {
    let agent = Agent::start();
    let invalid = |spec: ExecSpec, field: &str| {
        let failure = agent.failure(spec);
        assert_eq!(failure.kind, FailureKind::Invalid, "{failure:?}");
        assert!(failure.message.starts_with(field), "{failure:?}");
    };
    invalid(argv(&[]), "argv");
    invalid(argv(&[""]), "argv");
    invalid(argv(&["ec\0ho"]), "argv");
    let with = |change: fn(&mut ExecSpec)| {
        let mut spec = argv(&["true"]);
        change(&mut spec);
        spec
    };
    invalid(
        with(|spec| spec.cwd = Some("/no/such".into())),
        "cwd: cannot enter `/no/such`",
    );
    invalid(with(|spec| spec.cwd = Some("/etc/passwd".into())), "cwd");
    invalid(
        with(|spec| spec.user = Some("no-such-user".into())),
        "user: no `no-such-user`",
    );
    invalid(
        with(|spec| spec.user = Some("root:no-such-group".into())),
        "user: no group",
    );
    invalid(
        with(|spec| drop(spec.env.insert("A=B".into(), String::new()))),
        "env: `A=B`",
    );
    invalid(
        with(|spec| drop(spec.env.insert("A".into(), "\0".into()))),
        "env",
    );
    // One argument above the kernel's MAX_ARG_STRLEN.
    invalid(argv(&["true", &"x".repeat(200_000)]), "argv and env");
}

#[test]
fn programs_that_cannot_run_are_told_apart() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str, mode: u32| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let check = |program: &str, kind: FailureKind| {
        let failure = agent.failure(argv(&[program]));
        assert_eq!(failure.kind, kind, "{failure:?}");
        assert!(failure.message.contains(program), "{failure:?}");
    };
    check("no-such-program", FailureKind::NotFound);
    check("/no/such/program", FailureKind::NotFound);
    check("/etc/passwd/program", FailureKind::NotFound);
    check("/etc/passwd", FailureKind::NotExecutable);
    check("/etc", FailureKind::NotExecutable);
    check(&file("empty", "", 0o755), FailureKind::NotExecutable);
    check(
        &file("script", "#!/no/such/shell\n", 0o755),
        FailureKind::NotExecutable,
    );
}

#[test]
fn the_search_goes_past_what_cannot_run() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let decoy = directory.path().join("decoy");
    fs::create_dir(&decoy).unwrap();
    fs::write(decoy.join("true"), "").unwrap();
    let mut spec = argv(&["true"]);
    let path = format!("/no/such:/etc/passwd:{}:/usr/bin:/bin", decoy.display());
    spec.env.insert("PATH".into(), path);
    assert_eq!(agent.run(spec.clone()).status, ExitStatus::Code(0));
    spec.env.insert("PATH".into(), decoy.display().to_string());
    assert_eq!(agent.failure(spec).kind, FailureKind::NotExecutable);
}

#[test]
fn a_relative_program_is_relative_to_the_working_directory() {
    let mut spec = argv(&["./sh", "-c", "pwd -P"]);
    spec.cwd = Some("/bin".into());
    let outcome = Agent::start().run(spec);
    assert!(outcome.text().trim_end().ends_with("/bin"), "{outcome:?}");
}
