use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::wire::Spec;

fn good() -> Value {
    json!({
        "kernel": {"path": "/k/vmlinux", "initrd": "/k/initrd.cpio", "cmdline": "quiet"},
        "memory_mib": 128, "vcpus": 2, "window_mib": 4,
        "disks": [
            {"id": "root", "socket": "/r/root.sock", "read_only": true},
            {"id": "scratch", "socket": "/r/s.sock", "queues": 2, "queue_size": 256},
        ],
        "vsock": {"cid": 3, "socket": "/r/v.sock"},
        "console": {"path": "/r/console.log", "limit_bytes": 4096},
    })
}

fn read(spec: &Value) -> Result<SandboxSpec, String> {
    let wire = Spec::parse(spec.to_string().as_bytes()).map_err(|error| error.to_string())?;
    SandboxSpec::try_from(wire).map_err(|error| error.to_string())
}

#[test]
fn a_full_spec_is_read_as_it_is_meant() {
    let spec = read(&good()).unwrap();
    assert_eq!(
        (spec.memory.mib, spec.memory.window_mib, spec.vcpus),
        (128, 4, 2)
    );
    assert_eq!(
        spec.kernel.initrd.as_deref(),
        Some(Path::new("/k/initrd.cpio"))
    );
    let root = &spec.devices.disks[0];
    assert_eq!(
        (root.read_only, root.queues, root.queue_size),
        (true, 1, 128)
    );
    let scratch = &spec.devices.disks[1];
    assert_eq!(
        (scratch.read_only, scratch.queues, scratch.queue_size),
        (false, 2, 256)
    );
    assert_eq!(spec.devices.vsock.unwrap().cid, 3);
    let console = spec.devices.console.unwrap();
    assert_eq!(console.sink, ConsoleSink::Path("/r/console.log".into()));
}

#[test]
fn little_has_to_be_said() {
    let spec = json!({"kernel": {"path": "/k"}, "memory_mib": 64, "vcpus": 1});
    let spec = read(&spec).unwrap();
    assert_eq!(spec.memory.window_mib, 2);
    assert!(
        spec.devices.disks.is_empty()
            && spec.devices.vsock.is_none()
            && spec.devices.console.is_none()
    );
}

#[test]
fn every_error_names_its_field() {
    let long = "/".repeat(108);
    let cases = [
        (
            "/memory_mib",
            json!(63),
            "memory_mib: 63 is not within 64..=65536",
        ),
        ("/memory_mib", json!(65537), "memory_mib: "),
        ("/memory_mib", json!(-1), "memory_mib: invalid value"),
        ("/memory_mib", json!("128"), "memory_mib: invalid type"),
        ("/window_mib", json!(0), "window_mib: "),
        (
            "/window_mib",
            json!(3),
            "window_mib: 3 is not a power of two",
        ),
        ("/window_mib", json!(16), "window_mib: "),
        ("/vcpus", json!(0), "vcpus: 0 is not within 1..=16"),
        ("/vcpus", json!(17), "vcpus: "),
        ("/vcpus", json!(256), "vcpus: "),
        ("/kernel/path", json!(""), "kernel.path: "),
        ("/kernel/path", json!(null), "kernel.path: "),
        ("/kernel/initrd", json!("a\0b"), "kernel.initrd: "),
        (
            "/kernel/cmdline",
            json!("two\nlines"),
            "kernel.cmdline: '\\n' cannot be",
        ),
        (
            "/kernel/extra",
            json!(1),
            "kernel.extra: unknown field `extra`",
        ),
        ("/extra", json!(1), "extra: unknown field `extra`"),
        ("/disks/0/id", json!("ro/ot"), "disks[0].id: "),
        (
            "/disks/1/id",
            json!("root"),
            "disks[1].id: \"root\" is used by another disk",
        ),
        (
            "/disks/1/socket",
            json!(long),
            "disks[1].socket: 108 bytes are too long",
        ),
        ("/disks/1/queues", json!(0), "disks[1].queues: "),
        (
            "/disks/1/queue_size",
            json!(100),
            "disks[1].queue_size: 100 is not a power of two",
        ),
        ("/disks/1/queue_size", json!(2048), "disks[1].queue_size: "),
        ("/disks/1/extra", json!(0), "disks[1].extra: unknown field"),
        (
            "/disks/1/read_only",
            json!(0),
            "disks[1].read_only: invalid type",
        ),
        (
            "/vsock/cid",
            json!(2),
            "vsock.cid: 2 is not within 3..=4294967294",
        ),
        ("/vsock/cid", json!(u32::MAX), "vsock.cid: "),
        (
            "/vsock/socket",
            json!("/".repeat(97)),
            "vsock.socket: 97 bytes are too long",
        ),
        ("/console/limit_bytes", json!(0), "console.limit_bytes: "),
        (
            "/console/fd",
            json!(5),
            "console: give either path or fd, not both",
        ),
    ];
    for (pointer, value, expected) in cases {
        let mut spec = good();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        spec.pointer_mut(parent).unwrap()[key] = value;
        let error = read(&spec).unwrap_err();
        assert!(
            error.starts_with(expected),
            "{pointer}: {error:?} does not start with {expected:?}"
        );
    }
}

#[test]
fn missing_and_superfluous_parts_are_named() {
    for field in ["kernel", "memory_mib", "vcpus"] {
        let mut spec = good();
        spec.as_object_mut().unwrap().remove(field);
        let error = read(&spec).unwrap_err();
        assert!(
            error.contains(&format!("missing field `{field}`")),
            "{error}"
        );
    }
    let mut spec = good();
    spec["console"] = json!({"fd": 1});
    assert!(
        read(&spec)
            .unwrap_err()
            .starts_with("console.fd: 1 is taken")
    );
    spec["console"] = json!({});
    assert_eq!(read(&spec).unwrap_err(), "console: give either path or fd");
    let disk = |n: usize| json!({"id": format!("d{n}"), "socket": "/s"});
    spec = good();
    spec["disks"] = (0..15).map(disk).collect();
    assert_eq!(
        read(&spec).unwrap_err(),
        "disks: 15 given, at most 14 allowed"
    );
    spec["disks"] = (0..14).map(disk).collect();
    spec["console"] = json!({"fd": 2});
    assert!(read(&spec).is_ok());
}

#[test]
fn text_that_is_no_spec_is_refused_with_its_place() {
    for (text, expected) in [
        ("", "spec: EOF"),
        ("{", "spec: EOF"),
        ("[]", "spec: "),
        ("null", "spec: invalid type: null"),
    ] {
        let error = Spec::parse(text.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{text:?}: {error}");
    }
    let twice = good().to_string() + "{}";
    assert!(
        Spec::parse(twice.as_bytes())
            .unwrap_err()
            .to_string()
            .contains("trailing characters")
    );
    assert!(Spec::parse(b"\xff\xfe").is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// No text makes the parser panic, and what it lets through obeys every limit.
    #[test]
    fn mangled_specs_are_refused_or_within_limits(
        at in any::<prop::sample::Index>(),
        bytes in prop::collection::vec(any::<u8>(), 0..4),
        cut in 0_usize..4,
    ) {
        let mut text = good().to_string().into_bytes();
        let at = at.index(text.len());
        let end = (at + cut).min(text.len());
        text.splice(at..end, bytes);
        if let Ok(Ok(spec)) = Spec::parse(&text).map(SandboxSpec::try_from) {
            prop_assert!(MEMORY_MIB.contains(&spec.memory.mib));
            prop_assert!(spec.memory.window_mib.is_power_of_two() && spec.memory.window_mib <= 8);
            prop_assert!(VCPUS.contains(&spec.vcpus));
            prop_assert!(spec.devices.disks.iter().all(|d| QUEUE_SIZE.contains(&d.queue_size)));
        }
    }
}
