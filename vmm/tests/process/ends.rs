//! How a sandbox comes to its end.

use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::guest::*;

#[test]
fn every_way_out_has_its_exit_code() {
    if !has_kvm("every_way_out_has_its_exit_code") {
        return;
    }
    let ends = [
        (out32(0x600, 0), 0, "power_off"),
        (out32(0x600, 1), 10, "restart"),
        (out32(0x600, 2), 11, "panic"),
        (out8(0x64, 0xfe), 10, "restart"),
        (INVALID.to_vec(), 12, "crash"),
    ];
    for (mut code, status, reason) in ends {
        code.extend(FOR_EVER);
        let place = Place::new();
        assert_end(&finish(start(&place.spec(&code), &[])), status, reason);
        assert!(place.left_over().is_empty(), "{:?}", place.left_over());
    }
}

#[test]
fn console_output_is_kept_up_to_its_limit() {
    if !has_kvm("console_output_is_kept_up_to_its_limit") {
        return;
    }
    let text = "hello\n".repeat(20);
    let mut code: Vec<u8> = text.bytes().flat_map(|byte| out8(0x3f8, byte)).collect();
    code.extend(out32(0x600, 0));
    let place = Place::new();
    assert_end(&finish(start(&place.spec(&code), &[])), 0, "power_off");
    let log = std::fs::read_to_string(place.path("console.log")).unwrap();
    assert!(
        log.starts_with(&text[..64]) && log[64..].contains("limit reached"),
        "{log}"
    );
}

#[test]
fn a_cut_lifeline_ends_it_and_leaves_no_socket() {
    if !has_kvm("a_cut_lifeline_ends_it_and_leaves_no_socket") {
        return;
    }
    let place = Place::new();
    let (reader, writer) = std::io::pipe().unwrap();
    rustix::io::fcntl_setfd(&reader, rustix::io::FdFlags::empty()).unwrap();
    let control = place.path("control.sock");
    let number = reader.as_raw_fd().to_string();
    let arguments = [
        "--lifeline",
        &number,
        "--control",
        control.to_str().unwrap(),
    ];
    let child = start(&place.spec(&FOR_EVER), &arguments);
    drop(reader);
    wait_for("the control socket", || {
        UnixStream::connect(&control).is_ok()
    });
    assert_eq!(place.left_over().len(), 2);
    drop(writer);
    assert_end(&finish(child), 0, "stopped");
    assert!(place.left_over().is_empty(), "{:?}", place.left_over());
}

#[test]
fn a_signal_ends_it_in_order() {
    if !has_kvm("a_signal_ends_it_in_order") {
        return;
    }
    let place = Place::new();
    let control = place.path("control.sock");
    let child = start(
        &place.spec(&FOR_EVER),
        &["--control", control.to_str().unwrap()],
    );
    wait_for("the control socket", || {
        UnixStream::connect(&control).is_ok()
    });
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    assert_end(&finish(child), 0, "stopped");
    assert!(place.left_over().is_empty(), "{:?}", place.left_over());
}

#[test]
fn it_pauses_resumes_and_stops_on_request() {
    if !has_kvm("it_pauses_resumes_and_stops_on_request") {
        return;
    }
    let place = Place::new();
    let control = place.path("control.sock");
    let mut spec = place.spec(&FOR_EVER);
    spec["vcpus"] = json!(4);
    let child = start(&spec, &["--control", control.to_str().unwrap()]);
    let mut control = Control::connect(&control);
    let mut ask = |request: &str| control.ask(&json!({ request: {} }));
    for _ in 0..3 {
        assert_eq!(ask("pause"), json!({"paused": {}}));
        assert_eq!(
            ask("status"),
            json!({"status": {"state": "paused", "vcpus": 4}})
        );
        assert_eq!(ask("resume"), json!({"resumed": {}}));
    }
    assert_eq!(ask("pause"), json!({"paused": {}}));
    assert_eq!(ask("stop"), json!({"stopping": {}}));
    assert_end(&finish(child), 0, "stopped");
}

#[test]
fn bad_specs_and_command_lines_are_refused_with_one_message() {
    let place = Place::new();
    let good = place.spec(&FOR_EVER);
    let changes = [
        ("/vcpus", json!(0), "vcpus: "),
        ("/surprise", json!(1), "surprise: "),
        (
            "/kernel/path",
            json!("/nonexistent"),
            "kernel.path: cannot read /nonexistent: ",
        ),
        (
            "/kernel/path",
            json!("/etc/passwd"),
            "kernel.path: /etc/passwd cannot be booted: ",
        ),
        (
            "/kernel/initrd",
            json!("/nonexistent"),
            "kernel.initrd: cannot read /nonexistent: ",
        ),
        (
            "/console/path",
            json!("/nonexistent/log"),
            "console.path: cannot create ",
        ),
    ];
    for (pointer, value, expected) in changes {
        if !pointer.contains("vcpus") && !has_kvm(pointer) {
            continue;
        }
        let mut spec = good.clone();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        spec.pointer_mut(parent).unwrap()[key] = value;
        let output = finish(start(&spec, &[]));
        assert_end(&output, 2, "error");
        let message = last_event(&output)["message"].as_str().unwrap().to_owned();
        assert!(message.starts_with(expected), "{message}");
        let log = String::from_utf8(output.stderr).unwrap();
        assert_eq!(log.matches(expected).count(), 1, "{log}");
    }
    for arguments in [&["boot"][..], &["frobnicate"], &[], &["boot", "--spec"]] {
        let program = env!("CARGO_BIN_EXE_rundlet-vmm");
        let output = Command::new(program).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert!(!output.stderr.is_empty());
    }
    let output = Command::new(env!("CARGO_BIN_EXE_rundlet-vmm"))
        .arg("--help")
        .output()
        .unwrap();
    assert!(output.status.success() && !output.stdout.is_empty());
}

#[test]
fn a_backend_that_hangs_up_or_is_not_there_is_named() {
    if !has_kvm("a_backend_that_hangs_up_or_is_not_there_is_named") {
        return;
    }
    let place = Place::new();
    let socket = place.path("disk");
    let mut spec = place.spec(&FOR_EVER);
    spec["disks"] = json!([{"id": "root", "socket": socket}]);
    let output = finish(start(&spec, &[]));
    assert_end(&output, 1, "error");
    let expected = format!("disk root: cannot connect to {}", socket.display());
    assert!(
        last_event(&output)["message"]
            .as_str()
            .unwrap()
            .starts_with(&expected)
    );

    let listener = UnixListener::bind(&socket).unwrap();
    let child = start(&spec, &[]);
    let (mut stream, _) = listener.accept().unwrap();
    stream.read_exact(&mut [0; 12]).unwrap();
    drop(stream);
    let output = finish(child);
    assert_end(&output, 1, "error");
    assert!(place.left_over().is_empty(), "{:?}", place.left_over());
}
