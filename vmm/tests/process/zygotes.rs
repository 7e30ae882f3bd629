//! Clones that a zygote makes.

use std::fs::{self, File};
use std::io::{PipeReader, pipe};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use serde_json::{Value, json};

use super::guest::*;
use super::node::{self, Node, is_ready, read};
use super::templates::{captured, clone_spec, counting, files, flip};

const PROGRAM: &str = env!("CARGO_BIN_EXE_rundlet-vmm");

fn zygote(place: &Place) -> Node {
    let template = place.path("template");
    let template = template.to_str().unwrap();
    Node::start(PROGRAM, &["zygote", "--template", template, "--socket"])
}

/// One that has loaded its template.
fn ready(place: &Place) -> Node {
    let node = zygote(place);
    assert_eq!(node.hear().0, json!({"ready": {}}));
    node
}

fn events(stdout: PipeReader) -> Vec<Value> {
    let text = read(stdout);
    let event = |line| serde_json::from_str(line).unwrap();
    text.lines().map(event).collect()
}

/// Asks for a clone with an output of its own.
fn clone(node: &Node, id: &str, spec: &Value, more: &[(&str, &dyn AsFd)]) -> (OwnedFd, PipeReader) {
    let (reader, writer) = pipe().unwrap();
    let fds = [&[("stdout", &writer as &dyn AsFd)], more].concat();
    let (_, pidfd) = node.clone(id, spec, &fds);
    (pidfd, reader)
}

/// Waits for the end of a clone that exits by itself.
fn assert_ended(node: &Node, code: i32) {
    let answer = node.hear().0;
    assert_eq!(answer["ended"]["code"], code, "{answer}");
}

#[test]
fn clones_of_a_zygote_go_on_each_with_its_own_memory() {
    if !has_kvm("clones_of_a_zygote_go_on_each_with_its_own_memory") {
        return;
    }
    let place = Place::new();
    captured(&place, &place.spec(&counting()));
    let before = files(&place);
    let node = ready(&place);
    let open = node.descriptors();
    let names = ["a", "b", "c"];
    let clones = names.map(|name| {
        let console = File::create(place.path(name)).unwrap();
        // Its path is not used.
        let mut spec = clone_spec(&place, name);
        spec["console"]["path"] = json!(place.path("nothing"));
        clone(&node, name, &spec, &[("console", &console)]).1
    });
    for _ in names {
        assert_ended(&node, 0);
    }
    for (name, stdout) in names.into_iter().zip(clones) {
        let [timeline, exit] = &events(stdout)[..] else {
            panic!("{name} said more, or less");
        };
        let instants = timeline["instants_us"].as_object().unwrap();
        let steps = [
            "forked", "settled", "vm", "memory", "devices", "vcpus", "running",
        ];
        assert!(
            steps.iter().all(|step| instants.contains_key(*step)),
            "{timeline}"
        );
        assert_eq!(exit["reason"], "power_off", "{exit}");
        assert_eq!(fs::read_to_string(place.path(name)).unwrap(), "ok\n");
    }
    assert!(!place.path("nothing").exists());
    assert_eq!(node.descriptors(), open);
    assert_eq!(node.close(), Some(0));
    assert!(before == files(&place), "the template has changed");
    assert!(place.left_over().is_empty(), "{:?}", place.left_over());
}

#[test]
fn a_clone_that_cannot_be_restored_ends_as_the_command_does() {
    if !has_kvm("a_clone_that_cannot_be_restored_ends_as_the_command_does") {
        return;
    }
    let place = Place::new();
    captured(&place, &place.spec(&counting()));
    let node = ready(&place);
    let good = clone_spec(&place, "console");
    let changed = |change: fn(&mut Value)| {
        let mut spec = good.clone();
        change(&mut spec);
        let (_, stdout) = clone(&node, "x", &spec, &[]);
        (events(stdout), node.hear().0["ended"]["code"].clone())
    };
    let (said, code) = changed(|spec| spec["binding"]["kernel"] = json!("cc"));
    assert_eq!(code, 3);
    assert_eq!(said.len(), 1);
    assert_eq!(said[0]["reason"], "template_stale");
    let (said, code) = changed(|spec| spec["disks"] = json!([{"id": "root", "socket": "/x"}]));
    assert_eq!(code, 2);
    let message = said[0]["message"].as_str().unwrap();
    assert!(
        message.starts_with("disks: the template has []"),
        "{message}"
    );
    // The next one is none the worse for it.
    let (_, stdout) = clone(&node, "y", &good, &[]);
    assert_ended(&node, 0);
    assert_eq!(events(stdout)[1]["reason"], "power_off");
}

#[test]
fn a_clone_lives_while_its_lifeline_does_whatever_happens_to_its_zygote() {
    if !has_kvm("a_clone_lives_while_its_lifeline_does_whatever_happens_to_its_zygote") {
        return;
    }
    let place = Place::new();
    let endless = [out8(0x3f8, b'r'), out8(0x3f8, b'\n'), FOR_EVER.to_vec()];
    captured(&place, &place.spec(&endless.concat()));
    let node = ready(&place);
    let (reader, writer) = pipe().unwrap();
    let spec = clone_spec(&place, "console");
    let (pidfd, stdout) = clone(&node, "x", &spec, &[("lifeline", &reader)]);
    drop(reader);
    wait_for("the clone's socket", || place.path("console.sock").exists());
    assert_eq!(node.close(), Some(0));
    assert!(
        !is_ready(&pidfd, Duration::from_millis(100)),
        "it has ended"
    );
    drop(writer);
    let said = events(stdout);
    assert_eq!(said[1]["reason"], "stopped", "{said:?}");
    assert!(is_ready(&pidfd, node::PATIENCE));
    assert!(place.left_over().is_empty(), "{:?}", place.left_over());
}

/// One that boots.
fn booter() -> Node {
    let node = Node::start(PROGRAM, &["zygote", "--socket"]);
    assert_eq!(node.hear().0, json!({"ready": {}}));
    node
}

#[test]
fn a_zygote_without_a_template_boots() {
    if !has_kvm("a_zygote_without_a_template_boots") {
        return;
    }
    let place = Place::new();
    let code = [out8(0x3f8, b'b'), out32(0x600, 0)].concat();
    let spec = place.spec(&code);
    let node = booter();
    let open = node.descriptors();
    for _ in 0..3 {
        let (reader, writer) = pipe().unwrap();
        node.ask_boot("b", &spec, &[("stdout", &writer)]);
        drop(writer);
        node.hear_cloned("b");
        assert_ended(&node, 0);
        let said = events(reader);
        assert_eq!(said.last().unwrap()["reason"], "power_off", "{said:?}");
        assert_eq!(fs::read_to_string(place.path("console.log")).unwrap(), "b");
    }
    let clone = json!({"binding": {}});
    node.ask("c", &clone, &[]);
    let said = node.hear().0;
    let message = said["refused"]["message"].as_str().unwrap();
    assert!(
        message.starts_with("clone: this zygote holds no template"),
        "{said}"
    );
    assert_eq!(node.descriptors(), open);
    assert_eq!(node.close(), Some(0));
    assert!(place.left_over().is_empty(), "{:?}", place.left_over());
}

#[test]
fn a_boot_that_cannot_be_ends_as_the_command_does() {
    if !has_kvm("a_boot_that_cannot_be_ends_as_the_command_does") {
        return;
    }
    let place = Place::new();
    let mut spec = place.spec(&FOR_EVER);
    spec["kernel"]["path"] = json!("/nowhere");
    let node = booter();
    let (reader, writer) = pipe().unwrap();
    node.ask_boot("b", &spec, &[("stdout", &writer)]);
    drop(writer);
    node.hear_cloned("b");
    assert_ended(&node, 2);
    assert_eq!(events(reader)[0]["reason"], "error");
}

#[test]
fn nobody_needs_to_listen_to_a_sandbox() {
    if !has_kvm("nobody_needs_to_listen_to_a_sandbox") {
        return;
    }
    let place = Place::new();
    let spec = place.spec(&[out8(0x3f8, b'b'), out32(0x600, 0)].concat());
    let node = booter();
    let (out, out_end) = pipe().unwrap();
    let (err, err_end) = pipe().unwrap();
    // Every word to them is an EPIPE.
    drop((out, err));
    node.ask_boot("b", &spec, &[("stdout", &out_end), ("stderr", &err_end)]);
    node.hear_cloned("b");
    assert_ended(&node, 0);
    assert_eq!(fs::read_to_string(place.path("console.log")).unwrap(), "b");
}

#[test]
fn a_template_that_cannot_be_used_ends_the_zygote_before_it_is_ready() {
    if !has_kvm("a_template_that_cannot_be_used_ends_the_zygote_before_it_is_ready") {
        return;
    }
    let place = Place::new();
    captured(&place, &place.spec(&counting()));
    flip(&place.path("template").join("memory"), 0);
    let Node { socket, zygote } = zygote(&place);
    assert_end(&finish(zygote), 4, "template_damaged");
    let mut bytes = [0; 16];
    let received = rustix::net::recv(&socket, &mut bytes, rustix::net::RecvFlags::empty());
    assert_eq!(received.unwrap().1, 0, "it said something");
}

#[test]
fn a_zygote_needs_a_seqpacket_socket() {
    let arguments = ["zygote", "--template", "/nowhere", "--socket", "0"];
    let output = finish(run(&arguments, &Value::Null, &[]));
    assert_end(&output, 2, "error");
    let event = last_event(&output);
    let message = event["message"].as_str().unwrap();
    assert!(
        message.starts_with("--socket: cannot use descriptor 0: it is no unix socket"),
        "{message}"
    );
}
