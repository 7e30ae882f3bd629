use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::fixture::{Fixture, code, eventually, sh, stderr, stdout};

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap()
}

/// Starts a run of a script that says "up", and waits for that.
fn started(fixture: &Fixture, options: &[&str], script: &str) -> Child {
    let mut child = fixture
        .command(&sh(options, script))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0; 3];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut line)
        .unwrap();
    assert_eq!(&line, b"up\n");
    child
}

#[test]
fn output_and_exit_code_come_back_and_nothing_is_left() {
    let fixture = Fixture::new();
    let output = fixture.sh(
        &["--env", "A=b c", "--workdir", "/usr"],
        "pwd; echo $A; echo trouble >&2; exit 7",
    );
    assert_eq!(stdout(&output), "/usr\nb c\n", "{output:?}");
    assert_eq!(stderr(&output), "trouble\n");
    assert_eq!(output.status.code(), Some(7));
    assert!(fixture.is_clean(), "{:?}", fixture.processes());
}

#[test]
fn codes_are_a_shell_s() {
    let fixture = Fixture::new();
    let run = |argv: &[&str]| {
        let mut args = vec!["run", "img", "--"];
        args.extend_from_slice(argv);
        let output = fixture.rundlet(&args);
        (output.status.code().unwrap(), stderr(&output))
    };
    assert_eq!(run(&["true"]).0, 0);
    assert_eq!(run(&["sh", "-c", "kill -KILL $$"]).0, 137);
    let (code, error) = run(&["/nonexistent"]);
    assert_eq!(code, 127, "{error}");
    assert!(error.contains("/nonexistent"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert_eq!(run(&["/etc/passwd"]).0, 126);
    let (code, error) = run(&[]);
    assert_eq!(code, 125);
    assert!(error.contains("command is missing"), "{error}");
    let output = fixture.rundlet(&["run", "--user", "nobody-of-that-name", "img", "--", "true"]);
    assert_eq!(output.status.code(), Some(125), "{output:?}");
}

#[test]
fn stdin_and_stdout_are_lossless() {
    let fixture = Fixture::new();
    let mut child = fixture
        .command(&["run", "-i", "img", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let bytes: Vec<u8> = (0..4_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let (mut stdin, sent) = (child.stdin.take().unwrap(), bytes.clone());
    let writer = thread::spawn(move || stdin.write_all(&sent).unwrap());
    let mut received = Vec::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_end(&mut received)
        .unwrap();
    writer.join().unwrap();
    assert_eq!(code(&mut child), Some(0));
    assert!(received == bytes);
}

#[test]
fn without_interactive_stdin_is_empty() {
    let fixture = Fixture::new();
    let mut child = fixture
        .command(&["run", "img", "--", "cat"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(code(&mut child), Some(0));
}

#[test]
fn a_timeout_is_124() {
    let fixture = Fixture::new();
    let began = Instant::now();
    let output = fixture.sh(&["--timeout", "1"], "trap '' TERM INT; sleep 100");
    assert_eq!(output.status.code(), Some(124), "{output:?}");
    assert!(began.elapsed() < Duration::from_secs(15));
    assert!(fixture.is_clean(), "{:?}", fixture.processes());
}

#[test]
fn the_first_signal_is_the_command_s_and_the_second_ends_it() {
    let fixture = Fixture::new();
    let mut child = started(
        &fixture,
        &[],
        "trap 'exit 9' TERM; echo up; while :; do sleep 0.1; done",
    );
    kill_process(pid(&child), Signal::TERM).unwrap();
    assert_eq!(code(&mut child), Some(9));

    let mut child = started(
        &fixture,
        &[],
        "trap '' INT; echo up; while :; do sleep 0.1; done",
    );
    kill_process(pid(&child), Signal::INT).unwrap();
    thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none());
    kill_process(pid(&child), Signal::INT).unwrap();
    assert_eq!(code(&mut child), Some(130));
    eventually("no leftovers", || fixture.is_clean());
}

#[test]
fn a_signal_during_the_boot_ends_it() {
    let fixture = Fixture::new();
    let mut child = fixture
        .command(&sh(&[], "true"))
        .env("RUNDLET_DOUBLE", "silence")
        .spawn()
        .unwrap();
    let console = fixture.run_directory().join("console.log");
    eventually("a console", || console.exists());
    kill_process(pid(&child), Signal::INT).unwrap();
    assert_eq!(code(&mut child), Some(130));
    assert!(fixture.is_clean(), "{:?}", fixture.processes());
}

#[test]
fn a_reader_that_goes_away_ends_the_command() {
    let fixture = Fixture::new();
    let mut child = started(&fixture, &[], "echo up; yes");
    drop(child.stdout.take());
    assert_eq!(code(&mut child), Some(141));
    eventually("no leftovers", || fixture.is_clean());
}

#[test]
fn a_guest_panic_is_reported_with_the_console() {
    let fixture = Fixture::new();
    let output = fixture.troubled("panic", &[], "true");
    let error = stderr(&output);
    assert_eq!(output.status.code(), Some(125));
    assert!(
        error.starts_with("rundlet: the guest's kernel panicked"),
        "{error}"
    );
    assert!(
        error.contains("| \\u{1b}[31mKernel panic - not syncing: double"),
        "{error}"
    );
    assert!(fixture.is_clean(), "{:?}", fixture.processes());
}

#[test]
fn a_guest_that_does_not_come_up_is_given_up() {
    let fixture = Fixture::new();
    let output = fixture.troubled("silence", &["--boot-timeout", "1"], "true");
    assert_eq!(output.status.code(), Some(125));
    let error = stderr(&output);
    assert!(error.contains("--boot-timeout"), "{error}");
    assert!(error.contains("Linux version 6.12 (double)"), "{error}");
    let output = fixture.troubled("garbage", &[], "true");
    assert_eq!(output.status.code(), Some(125));
    let error = stderr(&output);
    assert!(error.contains("unknown frame kind 255"), "{error}");
    assert!(fixture.is_clean(), "{:?}", fixture.processes());
}

#[test]
fn the_end_of_a_peer_is_a_clear_error_and_no_hang() {
    let fixture = Fixture::new();
    for (trouble, words, tail) in [
        (
            "backend-lost",
            "the block backend ended",
            "disk caught fire",
        ),
        ("vmm-killed", "the VMM ended without a word (signal: 6", ""),
    ] {
        let mut child = fixture
            .command(&sh(&[], "echo up; sleep 100"))
            .env("RUNDLET_DOUBLE", trouble)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0; 3];
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut line)
            .unwrap();
        fs::write(fixture.run_directory().join("ready-mark"), "").unwrap();
        assert_eq!(code(&mut child), Some(125), "{trouble}");
        let mut error = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut error)
            .unwrap();
        assert!(
            error.contains(words) && error.contains(tail),
            "{trouble}: {error}"
        );
        assert_eq!(fs::read_dir(fixture.path("run/runs")).unwrap().count(), 0);
    }
    let output = fixture.troubled("backend-refuses", &[], "true");
    let error = stderr(&output);
    assert!(
        error.contains("vhost-blk-ro ended before it was ready"),
        "{error}"
    );
    assert!(error.contains("double says no"), "{error}");
}

#[test]
fn a_killed_cli_leaves_nothing() {
    let fixture = Fixture::new();
    let mut child = started(&fixture, &[], "echo up; sleep 100");
    assert!(fixture.processes().len() >= 4, "{:?}", fixture.processes());
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    eventually("no leftovers", || fixture.is_clean());
}

#[test]
fn a_killed_cli_leaves_nothing_even_of_peers_that_ignore_their_lifeline() {
    let fixture = Fixture::new();
    let mut child = fixture
        .command(&sh(&[], "true"))
        .env("RUNDLET_DOUBLE", "deaf")
        .spawn()
        .unwrap();
    let console = fixture.run_directory().join("console.log");
    eventually("a console", || console.exists());
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("no leftovers", || fixture.is_clean());
}

#[test]
fn what_a_cli_killed_with_its_janitor_leaves_the_next_run_sweeps() {
    let fixture = Fixture::new();
    let mut child = started(&fixture, &[], "echo up; sleep 100");
    let mut processes = fixture.processes().into_iter();
    let (janitor, _) = processes
        .find(|(_, command)| command.starts_with("rundlet-janitor"))
        .unwrap();
    kill_process(
        Pid::from_raw(i32::try_from(janitor).unwrap()).unwrap(),
        Signal::KILL,
    )
    .unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the end of the peers", || fixture.processes().is_empty());
    assert_eq!(fs::read_dir(fixture.path("run/runs")).unwrap().count(), 1);
    assert_eq!(fixture.sh(&[], "true").status.code(), Some(0));
    assert!(fixture.is_clean());
}

#[test]
fn an_image_in_use_stays() {
    let fixture = Fixture::new();
    let mut child = started(&fixture, &[], "echo up; sleep 100");
    let output = fixture.rundlet(&["image", "rm", "img"]);
    assert_eq!(output.status.code(), Some(1));
    let error = stderr(&output);
    assert!(
        error.contains(&format!("process {}", child.id())),
        "{error}"
    );
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(fixture.rundlet(&["image", "rm", "img"]).status.success());
    let output = fixture.sh(&[], "true");
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr(&output).contains("there is no image img:latest"));
    eventually("no leftovers", || fixture.is_clean());
}

#[test]
fn an_import_killed_in_the_middle_leaves_no_image_and_is_swept() {
    let fixture = Fixture::new();
    let tools = fixture.path("tools");
    fs::create_dir(&tools).unwrap();
    let slow = tools.join("mkfs.erofs");
    fs::write(
        &slow,
        "#!/bin/sh\nfor last; do :; done\necho half > \"$last/../begun\"\nexec sleep 100\n",
    )
    .unwrap();
    fs::set_permissions(&slow, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap());
    let tree = fixture.text("tree");
    let mut child = fixture
        .command(&["image", "import", &tree, "other"])
        .env("PATH", path)
        .spawn()
        .unwrap();
    eventually("mkfs.erofs", || fixture.path("begun").exists());
    child.kill().unwrap();
    child.wait().unwrap();
    for (pid, command) in fixture.processes() {
        assert!(command.contains("sleep"), "{command}");
        kill_process(
            Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(),
            Signal::KILL,
        )
        .unwrap();
    }
    let count = |name: &str| {
        fs::read_dir(fixture.path("store").join(name))
            .unwrap()
            .count()
    };
    assert_eq!((count("tmp"), count("images"), count("names")), (1, 1, 1));
    let listed = fixture.rundlet(&["image", "ls", "--json"]);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 1);
    fs::write(fixture.path("tree/more"), "x").unwrap();
    assert!(
        fixture
            .rundlet(&["image", "import", &tree, "other"])
            .status
            .success()
    );
    assert_eq!((count("tmp"), count("images"), count("names")), (0, 2, 2));
}

#[test]
fn timeline_and_stats_are_json_lines() {
    let fixture = Fixture::new();
    let output = fixture.sh(&["--timeline", "--stats"], "echo x");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let error = stderr(&output);
    let lines: Vec<serde_json::Value> = error
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let timeline = &lines[0]["timeline"];
    let order = [
        "request",
        "backend_listening",
        "vmm_started",
        "ready",
        "exec_started",
        "exit",
        "stopped",
    ];
    let instants: Vec<u64> = order
        .map(|name| timeline["node_us"][name].as_u64().unwrap())
        .to_vec();
    assert!(instants.is_sorted(), "{timeline}");
    assert!(timeline["node_us"]["first_output"].is_u64());
    assert_eq!(timeline["vmm_us"]["agent_ready"], 1000);
    assert!(timeline["guest_us"]["ready"].is_u64());
    let sample = &lines[1]["stats"][0]["processes"];
    assert_eq!(sample[0]["name"], "rundlet-vmm");
    assert!(sample[1]["pss_kib"].as_u64().unwrap() > 0);
}

#[test]
fn a_terminal_is_a_terminal_and_is_given_back() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};
    let fixture = Fixture::new();
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let name = ptsname(&ours, Vec::new()).unwrap().into_string().unwrap();
    let open = || {
        fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&name)
            .unwrap()
    };
    let theirs = open();
    let size = Winsize {
        ws_row: 33,
        ws_col: 99,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&theirs, size).unwrap();
    let before = tcgetattr(&theirs).unwrap();
    let mut child = fixture
        .command(&sh(
            &["-it"],
            "stty size; read word; echo got $word; exit 5",
        ))
        .stdin(open())
        .stdout(open())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ours = fs::File::from(ours);
    let mut seen = String::new();
    let mut read_until = |words: &str| {
        while !seen.contains(words) {
            let mut buffer = [0; 256];
            let count = ours.read(&mut buffer).unwrap();
            seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    };
    read_until("33 99");
    let during = tcgetattr(&theirs).unwrap();
    assert_ne!(during.local_modes, before.local_modes);
    (&ours).write_all(b"hello\r").unwrap();
    assert_eq!(code(&mut child), Some(5));
    let after = tcgetattr(&theirs).unwrap();
    assert_eq!(after.local_modes, before.local_modes);
    assert_eq!(after.output_modes, before.output_modes);
}

#[test]
fn version_help_and_bad_usage() {
    let fixture = Fixture::new();
    let output = fixture.rundlet(&["--version"]);
    assert_eq!(
        stdout(&output),
        format!("rundlet {}\n", env!("CARGO_PKG_VERSION"))
    );
    assert!(fixture.rundlet(&["run", "--help"]).status.success());
    assert_eq!(fixture.rundlet(&[]).status.code(), Some(2));
    let output = fixture.rundlet(&["run", "--memory", "lots", "img", "--", "true"]);
    assert_eq!(output.status.code(), Some(125));
    let output = fixture.rundlet(&["run", "--memory", "1", "img", "--", "true"]);
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr(&output).contains("--memory is 1 MiB, 64 to 65536 are possible"));
    let output = fixture.rundlet(&["image", "import", "/tmp", "Bad"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("lower-case"));
}
