//! What a zygote promises.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{PipeReader, PipeWriter};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};
use serde_json::{Value, json};

use crate::double::descriptors;
use crate::node::{Node, PATIENCE, is_ready, read, request};

macro_rules! all {
    ($($test:ident),* $(,)?) => {
        pub(crate) const ALL: &[(&str, fn())] = &[$((stringify!($test), $test)),*];
    };
}

all![
    a_hundred_children_are_each_reported_once,
    a_killed_child_is_reported_with_its_signal,
    a_child_that_panics_is_an_end_like_any_other,
    bad_requests_are_refused_and_the_next_is_served,
    what_it_does_not_make_is_refused,
    descriptors_do_not_leak_over_five_hundred_children,
    children_outlive_the_zygote,
    children_outlive_a_zygote_that_is_killed,
    a_node_that_does_not_read_loses_nothing,
    a_child_has_its_own_descriptors_and_none_of_the_zygote,
    a_child_has_its_own_output_name_and_time,
    a_child_has_the_signals_that_the_zygote_came_with,
    a_child_may_have_threads,
    a_zygote_with_a_second_thread_makes_no_children,
    a_child_is_born_in_its_cgroup,
    what_is_no_cgroup_is_refused,
];

fn this_program() -> PathBuf {
    std::env::current_exe().unwrap()
}

/// A node with a zygote that has said it is ready.
fn node() -> Node {
    let node = Node::start(this_program(), &["--zygote"]);
    assert_eq!(node.hear().0, json!({"ready": {}}));
    node
}

/// The spec of a clone that shall do this.
fn act(act: &str) -> Value {
    json!({"binding": {"act": act}})
}

/// Has a clone do something, and returns what it wrote to its standard output.
fn output_of(node: &Node, what: &str) -> String {
    let (reader, writer) = std::io::pipe().unwrap();
    node.clone("output", &act(what), &[("stdout", &writer)]);
    drop(writer);
    let text = read(reader);
    assert_eq!(node.hear().0["ended"]["code"], 0, "{text}");
    text
}

/// The next answer, which must be a refusal.
fn refusal(node: &Node) -> Value {
    let (answer, pidfd) = node.hear();
    assert!(pidfd.is_none());
    assert!(answer["refused"].is_object(), "{answer}");
    answer["refused"].clone()
}

/// What a clone is given, and what keeps it alive.
fn lifeline() -> (PipeReader, PipeWriter) {
    std::io::pipe().unwrap()
}

fn a_hundred_children_are_each_reported_once() {
    let node = node();
    let mut live = HashSet::new();
    let mut pidfds = Vec::new();
    let mut ended = 0;
    for index in 0..100 {
        node.ask(&format!("c{index}"), &act(&format!("exit {index}")), &[]);
    }
    // Ends may come between the answers, but only of children that were announced.
    while ended < 100 {
        let (answer, pidfd) = node.hear();
        if let Some(cloned) = answer.get("cloned") {
            assert!(live.insert((cloned["id"].clone(), cloned["pid"].clone())));
            pidfds.push(pidfd.expect("a pidfd"));
            continue;
        }
        let end = &answer["ended"];
        let who = (end["id"].clone(), end["pid"].clone());
        assert!(live.remove(&who), "{answer}");
        assert_eq!(end["id"], json!(format!("c{}", end["code"])), "{answer}");
        assert!(end.get("signal").is_none());
        ended += 1;
    }
    assert_eq!((live.len(), pidfds.len()), (0, 100));
    assert!(pidfds.iter().all(|pidfd| is_ready(pidfd, PATIENCE)));
    assert!(!is_ready(&node.socket, Duration::from_millis(100)), "once");
    assert_eq!(node.close(), Some(0));
}

fn a_killed_child_is_reported_with_its_signal() {
    let node = node();
    let (pid, pidfd) = node.clone("victim", &act("sleep"), &[]);
    assert!(!is_ready(&pidfd, Duration::from_millis(20)), "it is alive");
    pidfd_send_signal(&pidfd, Signal::KILL).unwrap();
    let expected = json!({"ended": {"id": "victim", "pid": pid, "signal": 9}});
    assert_eq!(node.hear().0, expected);
}

fn a_child_that_panics_is_an_end_like_any_other() {
    let node = node();
    let (reader, writer) = std::io::pipe().unwrap();
    node.clone("p", &act("panic"), &[("stderr", &writer)]);
    drop(writer);
    assert_eq!(node.hear().0["ended"]["code"], 101);
    assert!(read(reader).contains("as told"));
    node.clone("q", &act("exit 3"), &[]);
    assert_eq!(node.hear().0["ended"]["code"], 3);
}

fn bad_requests_are_refused_and_the_next_is_served() {
    let node = node();
    let null = File::open("/dev/null").unwrap();
    let null = null.as_fd();
    let good = request("x", &act("exit 0"), &[]);
    let long = [&good[..], &vec![b' '; 70_000]].concat();
    let cases: [(&[u8], usize, &str); 7] = [
        (b"", 0, "spec: "),
        (b"{\"clone\":", 0, "clone: "),
        (b"\xff\xfe\x00", 0, "spec: "),
        (&long, 1, "a request has at most 65536 bytes"),
        (&good, 1, "clone.fds: names 0, but 1 came along"),
        (&good, 7, "a request brings at most 5 descriptors"),
        (&good, 50, "a request brings at most 5 descriptors"),
    ];
    let before = node.descriptors();
    for (bytes, count, message) in cases {
        node.send(bytes, &vec![null; count]).unwrap();
        let said = refusal(&node);
        let text = said["message"].as_str().unwrap();
        assert!(text.starts_with(message), "{said}");
    }
    node.send(&request("y", &act("exit 0"), &["stdin"]), &[null])
        .unwrap();
    let said = refusal(&node);
    assert_eq!(said["id"], "y");
    node.ask("../z", &act("exit 0"), &[]);
    assert_eq!(refusal(&node)["id"], Value::Null);
    assert_eq!(node.descriptors(), before);

    node.clone("good", &act("exit 0"), &[]);
    assert_eq!(node.hear().0["ended"]["id"], "good");
}

fn what_it_does_not_make_is_refused() {
    let node = node();
    let spec = json!({"kernel": {"path": "/x"}, "memory_mib": 64, "vcpus": 1});
    node.ask_boot("b", &spec, &[]);
    let said = refusal(&node);
    assert_eq!(said["id"], "b");
    let message = said["message"].as_str().unwrap();
    assert!(
        message.starts_with("boot: this zygote holds a template"),
        "{said}"
    );
    node.clone("c", &act("exit 0"), &[]);
    assert_eq!(node.hear().0["ended"]["id"], "c");
}

fn descriptors_do_not_leak_over_five_hundred_children() {
    let node = node();
    let null = File::options().write(true).open("/dev/null").unwrap();
    let (reader, _writer) = lifeline();
    let gifts: [(&str, &dyn AsFd); 4] = [
        ("lifeline", &reader),
        ("stdout", &null),
        ("stderr", &null),
        ("console", &null),
    ];
    let before = node.descriptors();
    for _ in 0..500 {
        node.clone("again", &act("exit 0"), &gifts);
        assert_eq!(node.hear().0["ended"]["code"], 0);
    }
    assert_eq!(node.descriptors(), before);
}

fn children_outlive_the_zygote() {
    let node = node();
    let (reader, writer) = lifeline();
    let (_, pidfd) = node.clone("survivor", &act("wait"), &[("lifeline", &reader)]);
    drop(reader);
    assert_eq!(node.close(), Some(0));
    assert_ends_with_its_lifeline(&pidfd, writer);
}

fn children_outlive_a_zygote_that_is_killed() {
    let mut node = node();
    let (reader, writer) = lifeline();
    let (_, pidfd) = node.clone("survivor", &act("wait"), &[("lifeline", &reader)]);
    drop(reader);
    node.zygote.kill().unwrap();
    node.zygote.wait().unwrap();
    // Nobody else has its end of the socket.
    assert!(is_ready(&node.socket, PATIENCE));
    assert_eq!(node.send(b"x", &[]), Err(Errno::PIPE));
    assert_ends_with_its_lifeline(&pidfd, writer);
}

fn assert_ends_with_its_lifeline(pidfd: &OwnedFd, writer: PipeWriter) {
    assert!(!is_ready(pidfd, Duration::from_millis(100)), "it has ended");
    drop(writer);
    assert!(is_ready(pidfd, PATIENCE), "it lives on");
}

fn a_node_that_does_not_read_loses_nothing() {
    let node = node();
    // As many as the socket takes, and some of them bad.
    let mut asked = 0;
    let mut idle = 0;
    while idle < 20 && asked < 2000 {
        let bytes = match asked % 4 {
            3 => request(&format!("c{asked}"), &act("exit 0"), &["nothing"]),
            _ => request(&format!("c{asked}"), &act("exit 0"), &[]),
        };
        match node.send(&bytes, &[]) {
            Ok(()) => (asked, idle) = (asked + 1, 0),
            Err(Errno::AGAIN) => {
                idle += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(asked < 2000, "it takes requests without end");
    let (mut refused, mut cloned, mut ended) = (0, HashSet::new(), HashSet::new());
    while refused + ended.len() < asked {
        let (answer, _) = node.hear();
        let id = |what: &str| answer[what]["id"].as_str().map(str::to_owned);
        if let Some(id) = id("cloned") {
            assert!(cloned.insert(id));
        } else if let Some(id) = id("ended") {
            assert!(cloned.contains(&id), "{id} was not announced");
            assert!(ended.insert(id));
        } else {
            id("refused").unwrap();
            refused += 1;
        }
    }
    assert_eq!((refused, cloned.len()), (asked / 4, asked - asked / 4));
    assert!(!is_ready(&node.socket, Duration::from_millis(100)));
}

fn a_child_has_its_own_descriptors_and_none_of_the_zygote() {
    let node = node();
    // With sisters that it must know nothing of.
    let (reader, writer) = lifeline();
    for _ in 0..3 {
        node.clone("sister", &act("wait"), &[("lifeline", &reader)]);
    }
    drop(reader);
    let text = output_of(&node, "descriptors");
    for name in ["socket", "signalfd", "pidfd", "eventpoll", "eventfd"] {
        assert!(!text.contains(name), "{text}");
    }
    // What the zygote itself was started with, and has no use for, is what is left.
    let started_with = |target: &str| !target.contains("socket") && !target.contains("signalfd");
    let zygote = descriptors(&node.zygote.id().to_string());
    let expected: Vec<i32> = zygote
        .into_iter()
        .filter(|(_, target)| started_with(target))
        .map(|(number, _)| number)
        .collect();
    let numbers = text.lines().map(|line| line.split(' ').next().unwrap());
    let numbers: Vec<i32> = numbers.map(|number| number.parse().unwrap()).collect();
    assert_eq!(numbers, expected, "{text}");
    drop(writer);
}

fn a_child_has_its_own_output_name_and_time() {
    let node = node();
    let pipes = || std::io::pipe().unwrap();
    let ((out, out_end), (err, err_end), (console, console_end)) = (pipes(), pipes(), pipes());
    let gifts: [(&str, &dyn AsFd); 3] = [
        ("console", &console_end),
        ("stderr", &err_end),
        ("stdout", &out_end),
    ];
    node.clone("speaker", &act("say"), &gifts);
    drop((out_end, err_end, console_end));
    let event: Value = serde_json::from_str(&read(out)).unwrap();
    let instants = event["instants_us"].as_object().unwrap();
    assert!(instants["forked"].as_u64() <= instants["settled"].as_u64());
    assert!(
        instants["settled"].as_u64().unwrap() < 60_000_000,
        "{event}"
    );
    assert_eq!(read(err), "on standard error\n");
    assert_eq!(read(console), "on the console");
    assert_eq!(node.hear().0["ended"]["code"], 0);
    assert_eq!(output_of(&node, "cat /proc/self/comm"), "vmm-output\n");
}

fn a_child_has_the_signals_that_the_zygote_came_with() {
    // Started by a program that wants to hear of no child: still each is reported.
    let node = Node::start_after("trap '' CHLD", this_program(), &["--zygote"]);
    assert_eq!(node.hear().0, json!({"ready": {}}));
    let mask = |status: &str, name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        u64::from_str_radix(line.split_whitespace().last().unwrap(), 16).unwrap()
    };
    let status = output_of(&node, "cat /proc/self/status");
    let own = fs::read_to_string("/proc/self/status").unwrap();
    for name in ["SigBlk:", "SigIgn:"] {
        assert_eq!(mask(&status, name), mask(&own, name), "{name}");
    }
}

fn a_child_may_have_threads() {
    let node = node();
    for _ in 0..10 {
        node.clone("threads", &act("threads"), &[]);
        assert_eq!(node.hear().0["ended"]["code"], 0);
    }
}

fn a_zygote_with_a_second_thread_makes_no_children() {
    let node = Node::start(this_program(), &["--zygote-of-two-threads"]);
    assert_eq!(node.hear().0, json!({"ready": {}}));
    node.ask("x", &act("exit 0"), &[]);
    let said = refusal(&node);
    let message = said["message"].as_str().unwrap();
    assert!(message.contains("more than one thread"), "{said}");
    let mut node = node;
    node.zygote.kill().unwrap();
}

/// A new directory in a writable cgroup2, or why there is none.
fn cgroup(name: &str) -> Result<PathBuf, String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mount = mounts
        .lines()
        .find(|line| line.split(' ').nth(2) == Some("cgroup2"))
        .ok_or("no cgroup2 is mounted")?;
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
    let own = own.ok_or("this process is in no cgroup2")?;
    let root = Path::new(mount.split(' ').nth(1).unwrap_or_default());
    let path = root
        .join(own)
        .join(format!("{name}-{}", std::process::id()));
    fs::create_dir(&path).map_err(|error| format!("cannot make {}: {error}", path.display()))?;
    Ok(path)
}

fn a_child_is_born_in_its_cgroup() {
    let path = match cgroup("rundlet-zygote-test") {
        Ok(path) => path,
        Err(why) => return eprintln!("skipped: a_child_is_born_in_its_cgroup: {why}"),
    };
    let node = node();
    let slot = File::open(&path).unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let gifts: [(&str, &dyn AsFd); 2] = [("cgroup", &slot), ("stdout", &writer)];
    node.clone("slot", &act("cat /proc/self/cgroup"), &gifts);
    drop(writer);
    let text = read(reader);
    assert_eq!(node.hear().0["ended"]["code"], 0);
    let line = text.lines().find(|line| line.starts_with("0::")).unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    assert!(line.ends_with(name), "{text}");
    // The next one has no say in where the last one was born.
    assert!(!output_of(&node, "cat /proc/self/cgroup").contains(name));
    fs::remove_dir(&path).expect("nobody is left in it");

    node.ask("gone", &act("exit 0"), &[("cgroup", &slot)]);
    let said = refusal(&node);
    assert_eq!(said["id"], "gone");
}

fn what_is_no_cgroup_is_refused() {
    let node = node();
    let folder = File::open("/").unwrap();
    node.ask("x", &act("exit 0"), &[("cgroup", &folder)]);
    let said = refusal(&node);
    let message = said["message"].as_str().unwrap();
    let start = "cannot start a process in the cgroup of clone.fds: ";
    assert!(message.starts_with(start), "{said}");
    node.clone("y", &act("exit 0"), &[]);
}
