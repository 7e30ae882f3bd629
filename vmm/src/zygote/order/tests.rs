use super::*;
use crate::spec::ConsoleSink;
use serde_json::{Value, json};
use std::path::PathBuf;

fn descriptors(count: usize) -> Vec<OwnedFd> {
    let open = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    std::iter::repeat_with(open).take(count).collect()
}

fn request(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut request = json!({"clone": {
        "id": "job-7.a_B",
        "spec": {
            "binding": {"kernel": "00ff"},
            "disks": [{"id": "root", "socket": "/run/root.sock"}],
            "vsock": {"socket": "/run/vsock.sock"},
        },
        "fds": [],
    }});
    change(&mut request["clone"]);
    serde_json::to_vec(&request).unwrap()
}

fn clone(wanted: Wanted) -> CloneSpec {
    match wanted {
        Wanted::Clone(spec) => spec,
        Wanted::Boot(spec) => panic!("{spec:?}"),
    }
}

fn boot_request(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut request = json!({"boot": {
        "id": "b",
        "spec": {"kernel": {"path": "/vmlinux"}, "memory_mib": 64, "vcpus": 1},
    }});
    change(&mut request["boot"]);
    serde_json::to_vec(&request).unwrap()
}

fn refusal(json: &[u8], came: usize) -> String {
    Order::new(json, descriptors(came)).unwrap_err().to_string()
}

#[test]
fn descriptors_go_where_their_names_say() {
    let names = ["stderr", "console", "cgroup", "lifeline", "stdout"];
    let json = request(|clone| clone["fds"] = json!(names));
    let came = descriptors(5);
    let numbers: Vec<i32> = came.iter().map(AsRawFd::as_raw_fd).collect();
    let Order { id, wanted, gifts } = Order::new(&json, came).unwrap();
    let spec = clone(wanted);
    assert_eq!(id, "job-7.a_B");
    assert_eq!(spec.disks[0].id, "root");
    assert_eq!(spec.vsock, Some(PathBuf::from("/run/vsock.sock")));
    let Gifts {
        cgroup,
        lifeline,
        stdout,
        stderr,
        console,
    } = gifts;
    let got = [stderr, console, cgroup, lifeline, stdout].map(|fd| fd.unwrap().as_raw_fd());
    assert_eq!(got, *numbers);
    let console = spec.console.unwrap();
    assert_eq!(console.sink, ConsoleSink::Fd(numbers[1]));
    assert_eq!(console.limit, 1 << 20);
}

#[test]
fn a_console_that_came_along_replaces_the_path_and_keeps_the_limit() {
    let json = request(|clone| {
        clone["fds"] = json!(["console"]);
        clone["spec"]["console"] = json!({"path": "/var/log/c", "limit_bytes": 77});
    });
    let order = Order::new(&json, descriptors(1)).unwrap();
    let console = clone(order.wanted).console.unwrap();
    assert!(matches!(console.sink, ConsoleSink::Fd(_)));
    assert_eq!(console.limit, 77);
}

#[test]
fn without_descriptors_the_clone_shares_what_the_zygote_has() {
    let order = Order::new(&request(|_| {}), Vec::new()).unwrap();
    assert!(order.gifts.stdout.is_none() && clone(order.wanted).console.is_none());
}

/// What is wrong, how it gets wrong, descriptors that come along, how the refusal begins.
type Case = (&'static str, fn(&mut Value), usize, &'static str);

#[test]
fn a_refusal_names_its_field() {
    let cases: [Case; 12] = [
        ("unknown field", |c| c["more"] = json!(1), 0, "clone.more: "),
        (
            "unknown field of the spec",
            |c| c["spec"]["memory_mib"] = json!(1),
            0,
            "clone.spec.memory_mib: ",
        ),
        ("no id", |c| c["id"] = Value::Null, 0, "clone.id: "),
        ("an empty id", |c| c["id"] = json!(""), 0, "clone.id: "),
        ("a path as id", |c| c["id"] = json!("../x"), 0, "clone.id: "),
        (
            "a long id",
            |c| c["id"] = json!("x".repeat(65)),
            0,
            "clone.id: ",
        ),
        (
            "an unknown role",
            |c| c["fds"] = json!(["stdin"]),
            1,
            "clone.fds[0]: ",
        ),
        (
            "one role twice",
            |c| c["fds"] = json!(["stdout", "stdout"]),
            2,
            "clone.fds[1]: ",
        ),
        (
            "too few descriptors",
            |c| c["fds"] = json!(["stdout"]),
            0,
            "clone.fds: names 1, but 0",
        ),
        (
            "too many descriptors",
            |_| {},
            1,
            "clone.fds: names 0, but 1",
        ),
        (
            "two disks of one name",
            |c| {
                let disk = c["spec"]["disks"][0].clone();
                c["spec"]["disks"] = json!([disk, disk]);
            },
            0,
            "clone.spec.disks[1].id: ",
        ),
        (
            "a number of the zygote's",
            |c| c["spec"]["console"] = json!({"fd": 3}),
            0,
            "clone.spec.console.fd: 3 ",
        ),
    ];
    for (what, change, came, start) in cases {
        let message = refusal(&request(change), came);
        assert!(message.starts_with(start), "{what}: {message}");
    }
}

#[test]
fn a_boot_is_ordered_as_a_clone_is() {
    let json = boot_request(|boot| boot["fds"] = json!(["console", "lifeline"]));
    let came = descriptors(2);
    let number = came[0].as_raw_fd();
    let order = Order::new(&json, came).unwrap();
    assert_eq!((&*order.id, order.wanted.verb()), ("b", "boot"));
    assert!(order.gifts.lifeline.is_some() && order.gifts.stdout.is_none());
    let Wanted::Boot(spec) = order.wanted else {
        panic!("{:?}", order.wanted);
    };
    assert_eq!(spec.kernel.image, PathBuf::from("/vmlinux"));
    let console = spec.devices.console.unwrap();
    assert_eq!(console.sink, ConsoleSink::Fd(number));
}

#[test]
fn a_refused_boot_names_its_field() {
    let cases: [Case; 6] = [
        ("no spec", |b| b["spec"] = json!({}), 0, "boot.spec: "),
        (
            "a clone's spec",
            |b| b["spec"] = json!({"binding": {}}),
            0,
            "boot.spec.binding: ",
        ),
        ("no id", |b| b["id"] = json!("/"), 0, "boot.id: "),
        (
            "no vCPU",
            |b| b["spec"]["vcpus"] = json!(0),
            0,
            "boot.spec.vcpus: ",
        ),
        ("a gift too many", |_| {}, 1, "boot.fds: names 0, but 1"),
        (
            "a number of the zygote's",
            |b| b["spec"]["console"] = json!({"fd": 3}),
            0,
            "boot.spec.console.fd: 3 ",
        ),
    ];
    for (what, change, came, start) in cases {
        let message = refusal(&boot_request(change), came);
        assert!(message.starts_with(start), "{what}: {message}");
    }
}

#[test]
fn what_is_no_request_is_refused() {
    for json in ["", "{", "[]", "{}", r#"{"stop":{}}"#, "\u{0}", "null"] {
        let message = refusal(json.as_bytes(), 0);
        assert!(message.contains(": "), "{json:?}: {message}");
    }
    let twice = [request(|_| {}), request(|_| {})].concat();
    assert!(Order::new(&twice, Vec::new()).is_err());
}

#[test]
fn an_unreadable_request_keeps_its_id() {
    let json = request(|clone| clone["spec"]["more"] = json!(1));
    assert_eq!(
        Request::id_of_unreadable(&json).as_deref(),
        Some("job-7.a_B")
    );
    let json = boot_request(|boot| boot["spec"]["more"] = json!(1));
    assert_eq!(Request::id_of_unreadable(&json).as_deref(), Some("b"));
    assert_eq!(Request::id_of_unreadable(b"{\"clone\":{}}"), None);
    assert_eq!(Request::id_of_unreadable(b""), None);
}

#[test]
fn descriptors_of_a_refused_request_are_closed() {
    let (reader, writer) = std::io::pipe().unwrap();
    let json = request(|clone| clone["fds"] = json!(["stdout", "stderr"]));
    assert!(Order::new(&json, vec![writer.into()]).is_err());
    let mut rest = Vec::new();
    std::io::Read::read_to_end(&mut &reader, &mut rest).unwrap();
}
