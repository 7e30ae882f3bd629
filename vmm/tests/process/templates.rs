//! Capture, clones, and templates that must not be used.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rundlet_vmm::template::format;
use serde_json::{Value, json};

use super::guest::*;

/// Where a guest keeps its counter, and what it finds again later.
const COUNTER: u32 = 0x20_0000;
const KEEPSAKE: u32 = 0x30_0000;
const MARK: u64 = 0x1122_3344_5566_7788;
/// Where another vCPU counts, and its code.
const OTHER: u32 = 0x6000;
const TRAMPOLINE: u32 = 0x8000;
/// A guest counts for eight times so many ticks of its time stamp counter: about six seconds, so that a
/// capture comes in between, however fast the guest runs.
const TICKS: u32 = 2_000_000_000;

fn at(address: u32, code: &[u8]) -> Vec<u8> {
    [code, &address.to_le_bytes()].concat()
}

fn print(text: &str) -> Vec<u8> {
    text.bytes().flat_map(|byte| out8(0x3f8, byte)).collect()
}

/// Instructions, and a place to jump to when something is wrong, which panics.
struct Code(Vec<u8>);

impl Code {
    fn new() -> Self {
        let wrong = [out32(0x600, 2), FOR_EVER.to_vec()].concat();
        let skip = u8::try_from(wrong.len()).unwrap();
        Self([&[0xeb, skip][..], &wrong].concat())
    }

    fn add(&mut self, code: &[u8]) {
        self.0.extend(code);
    }

    /// A conditional jump to `target`.
    fn jump(&mut self, condition: u8, target: usize) {
        let next = i32::try_from(self.0.len() + 6).unwrap();
        let distance = i32::try_from(target).unwrap() - next;
        self.add(&[0x0f, condition]);
        self.add(&distance.to_le_bytes());
    }

    fn wrong_unless_equal(&mut self) {
        self.jump(0x85, 2); // jne
    }

    /// rdtsc; shl rdx, 32; or rax, rdx
    fn ticks(&mut self) {
        self.add(&[0x0f, 0x31, 0x48, 0xc1, 0xe2, 32, 0x48, 0x09, 0xd0]);
    }

    /// mov rax, MARK
    fn mark(&mut self) {
        self.add(&[0x48, 0xb8]);
        self.add(&MARK.to_le_bytes());
    }

    /// Puts a mark in memory, says so, and counts in a register and in memory for a while, comparing the
    /// two. Then the mark must still be there; it is wiped out.
    fn count(&mut self) {
        self.mark();
        self.add(&at(KEEPSAKE, &[0x48, 0x89, 0x04, 0x25])); // mov [KEEPSAKE], rax
        self.add(&[0x31, 0xdb]); // xor ebx, ebx
        self.add(&at(COUNTER, &[0x48, 0x89, 0x1c, 0x25])); // mov [COUNTER], rbx
        self.add(&print("r\n"));
        self.ticks();
        self.add(&[0x48, 0x89, 0xc6]); // mov rsi, rax
        let again = self.0.len();
        self.add(&[0x48, 0xff, 0xc3]); // inc rbx
        self.add(&at(COUNTER, &[0x48, 0xff, 0x04, 0x25])); // inc qword [COUNTER]
        self.add(&at(COUNTER, &[0x48, 0x3b, 0x1c, 0x25])); // cmp rbx, [COUNTER]
        self.wrong_unless_equal();
        self.ticks();
        self.add(&[0x48, 0x29, 0xf0]); // sub rax, rsi
        self.add(&[0x48, 0xc1, 0xe8, 3]); // shr rax, 3
        self.add(&at(TICKS, &[0x48, 0x3d])); // cmp rax, TICKS
        self.jump(0x82, again); // jb
        self.mark();
        self.add(&at(KEEPSAKE, &[0x48, 0x39, 0x04, 0x25])); // cmp [KEEPSAKE], rax
        self.wrong_unless_equal();
        self.add(&at(KEEPSAKE, &[0x48, 0x89, 0x1c, 0x25])); // mov [KEEPSAKE], rbx
    }

    /// Wakes the second vCPU, which then counts for ever (Intel SDM 3, 9.4.4: INIT, then SIPI).
    fn wake_other(&mut self) {
        // inc dword [OTHER]; jmp back, in 16-bit code
        let trampoline = [0x66, 0xff, 0x06, 0x00, 0x60, 0xeb, 0xf9, 0xf4];
        self.add(&[0x48, 0xb8]);
        self.add(&trampoline); // mov rax, trampoline
        self.add(&at(TRAMPOLINE, &[0x48, 0x89, 0x04, 0x25])); // mov [TRAMPOLINE], rax
        self.add(&[0xb9, 0x1b, 0, 0, 0, 0x0f, 0x32]); // rdmsr IA32_APIC_BASE
        self.add(&[0x0d, 0, 0x0c, 0, 0, 0x0f, 0x30]); // or eax, 0xc00: x2APIC; wrmsr
        for command in [0x4500_u32, 0x4608] {
            self.add(&[0xb9, 0x30, 0x08, 0, 0, 0xba, 1, 0, 0, 0]); // the ICR, APIC id 1
            self.add(&at(command, &[0xb8]));
            self.add(&[0x0f, 0x30]);
        }
        self.wait_for_other();
    }

    /// Waits until the other has counted on.
    fn wait_for_other(&mut self) {
        self.add(&at(OTHER, &[0x8b, 0x04, 0x25])); // mov eax, [OTHER]
        self.add(&at(OTHER, &[0x3b, 0x04, 0x25])); // cmp eax, [OTHER]
        self.add(&[0x74, 0xf7]); // je back
    }

    fn end(mut self) -> Vec<u8> {
        self.add(&print("ok\n"));
        self.add(&out32(0x600, 0));
        self.add(&FOR_EVER);
        self.0
    }
}

pub(crate) fn counting() -> Vec<u8> {
    let mut code = Code::new();
    code.count();
    code.end()
}

fn binding() -> Value {
    json!({"kernel": "aa", "image": "bb"})
}

pub(crate) fn captured(place: &Place, spec: &Value) -> Value {
    fs::create_dir(place.path("template")).unwrap();
    let socket = place.path("control.sock");
    let child = start(spec, &["--control", socket.to_str().unwrap()]);
    let log = place.path("console.log");
    wait_for("counting", || {
        fs::read_to_string(&log).is_ok_and(|text| text == "r\n")
    });
    let mut control = Control::connect(&socket);
    let capture = json!({"directory": place.path("template"), "binding": binding()});
    let reply = control.ask(&json!({ "capture": capture }));
    assert!(reply["captured"].is_object(), "{reply}");
    assert_eq!(
        control.ask(&json!({"status": {}}))["status"]["state"],
        "paused"
    );
    for request in [json!({"resume": {}}), json!({ "capture": capture })] {
        let reply = control.ask(&request);
        let message = reply["error"]["message"].as_str().unwrap();
        assert!(message.contains("can only be stopped"), "{reply}");
    }
    assert_eq!(control.ask(&json!({"stop": {}})), json!({"stopping": {}}));
    assert_end(&finish(child), 0, "stopped");
    assert_eq!(fs::read_to_string(log).unwrap(), "r\n");
    reply
}

pub(crate) fn clone_spec(place: &Place, name: &str) -> Value {
    json!({
        "binding": binding(),
        "console": {"path": place.path(name)},
        "vsock": {"socket": place.path(&format!("{name}.sock"))},
    })
}

fn clone(place: &Place, spec: &Value) -> std::process::Child {
    let template = place.path("template");
    let command = ["clone", "--template", template.to_str().unwrap()];
    run(&command, spec, &["--spec", "-"])
}

pub(crate) fn files(place: &Place) -> Vec<Vec<u8>> {
    let names = ["state", "memory", "window"];
    let read = |name| fs::read(place.path("template").join(name)).unwrap();
    names.map(read).to_vec()
}

#[test]
fn clones_go_on_where_the_template_stood_each_with_its_own_memory() {
    if !has_kvm("clones_go_on_where_the_template_stood") {
        return;
    }
    let place = Place::new();
    let reply = captured(&place, &place.spec(&counting()));
    let bytes = reply["captured"]["memory_bytes"].as_u64().unwrap();
    assert!((4096..1 << 20).contains(&bytes), "{reply}");
    let before = files(&place);
    assert_eq!(before[1].len() + before[2].len(), 64 << 20);
    let clones = ["one", "two"].map(|name| (name, clone(&place, &clone_spec(&place, name))));
    for (name, child) in clones {
        let output = finish(child);
        assert_end(&output, 0, "power_off");
        assert_eq!(fs::read_to_string(place.path(name)).unwrap(), "ok\n");
        let line = String::from_utf8(output.stdout).unwrap();
        let event: Value = serde_json::from_str(line.lines().next().unwrap()).unwrap();
        let instants = event["instants_us"].as_object().unwrap();
        let names = [
            "main", "template", "vm", "memory", "devices", "vcpus", "touched", "running",
        ];
        assert!(instants.len() == names.len() && names.iter().all(|n| instants.contains_key(*n)));
    }
    assert!(before == files(&place), "the template has changed");
    assert!(place.left_over().is_empty(), "{:?}", place.left_over());
}

#[test]
fn every_vcpu_goes_on() {
    if !has_kvm("every_vcpu_goes_on") {
        return;
    }
    let mut code = Code::new();
    code.wake_other();
    code.count();
    code.wait_for_other();
    let place = Place::new();
    let mut spec = place.spec(&code.end());
    spec["vcpus"] = json!(2);
    captured(&place, &spec);
    for name in ["one", "two"] {
        let output = finish(clone(&place, &clone_spec(&place, name)));
        assert_end(&output, 0, "power_off");
        assert_eq!(fs::read_to_string(place.path(name)).unwrap(), "ok\n");
    }
}

#[test]
fn a_clone_can_become_a_template_itself() {
    if !has_kvm("a_clone_can_become_a_template_itself") {
        return;
    }
    let place = Place::new();
    captured(&place, &place.spec(&counting()));
    let socket = place.path("clone-control.sock");
    let template = place.path("template");
    let child = run(
        &["clone", "--template", template.to_str().unwrap()],
        &clone_spec(&place, "first"),
        &["--spec", "-", "--control", socket.to_str().unwrap()],
    );
    let mut control = Control::connect(&socket);
    fs::create_dir(place.path("second")).unwrap();
    let capture = json!({"directory": place.path("second"), "binding": {}});
    let reply = control.ask(&json!({ "capture": capture }));
    assert!(reply["captured"].is_object(), "{reply}");
    control.ask(&json!({"stop": {}}));
    assert_end(&finish(child), 0, "stopped");
    fs::remove_dir_all(&template).unwrap();
    fs::rename(place.path("second"), &template).unwrap();
    let mut spec = clone_spec(&place, "last");
    spec["binding"] = json!({});
    assert_end(&finish(clone(&place, &spec)), 0, "power_off");
    assert_eq!(fs::read_to_string(place.path("last")).unwrap(), "ok\n");
}

#[test]
fn a_capture_that_cannot_be_written_leaves_the_sandbox_running() {
    if !has_kvm("a_capture_that_cannot_be_written_leaves_the_sandbox_running") {
        return;
    }
    let place = Place::new();
    let socket = place.path("control.sock");
    let arguments = ["--control", socket.to_str().unwrap()];
    let child = start(&place.spec(&FOR_EVER), &arguments);
    let mut control = Control::connect(&socket);
    let long = "x".repeat(257);
    for (capture, expected) in [
        (
            json!({"directory": "/nonexistent"}),
            "cannot write /nonexistent/state: ",
        ),
        (json!({"directory": "relative"}), "capture.directory: "),
        (
            json!({"directory": "/tmp", "binding": {"a": long}}),
            "binding.a: ",
        ),
        (
            json!({"directory": "/tmp", "surprise": 1}),
            "capture.surprise: ",
        ),
        (json!({}), "capture: missing field `directory`"),
    ] {
        let reply = control.ask(&json!({ "capture": capture }));
        let message = reply["error"]["message"].as_str().unwrap();
        assert!(message.starts_with(expected), "{message}");
    }
    assert_eq!(
        control.ask(&json!({"status": {}}))["status"]["state"],
        "running"
    );
    assert_eq!(control.ask(&json!({"resume": {}})), json!({"resumed": {}}));
    control.ask(&json!({"stop": {}}));
    assert_end(&finish(child), 0, "stopped");
}

/// What a clone says that is not made.
fn refusal(place: &Place, spec: &Value, code: i32, reason: &str) -> String {
    let output = finish(clone(place, spec));
    assert_end(&output, code, reason);
    let message = last_event(&output)["message"].as_str().unwrap().to_owned();
    assert!(!place.path("refused.sock").exists());
    assert!(!place.path("refused").exists(), "a console was opened");
    message
}

pub(crate) fn flip(path: &Path, offset: u64) {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}

#[test]
fn what_does_not_fit_is_refused_with_one_sentence() {
    if !has_kvm("what_does_not_fit_is_refused_with_one_sentence") {
        return;
    }
    let place = Place::new();
    captured(&place, &place.spec(&counting()));
    let good = clone_spec(&place, "refused");
    let stale = |spec: &Value| refusal(&place, spec, 3, "template_stale");
    let mut other = good.clone();
    other["binding"]["kernel"] = json!("cc");
    let message = stale(&other);
    assert!(
        message.contains(r#"its kernel is "aa", asked for is "cc""#),
        "{message}"
    );
    other["binding"] = json!({"kernel": "aa"});
    let message = stale(&other);
    assert!(message.contains("its image is"), "{message}");

    let state = place.path("template").join("state");
    let bytes = fs::read(&state).unwrap();
    let (header, body) = format::parse(&bytes).unwrap();
    let changed = |change: fn(&mut format::Header)| {
        let mut header = header;
        change(&mut header);
        fs::write(&state, format::encode(&header, &body).unwrap()).unwrap();
        stale(&good)
    };
    let message = changed(|header| header.host.signature ^= 0x10);
    assert!(message.contains("it was made on a CPU"), "{message}");
    let message = changed(|header| header.host.features ^= 1);
    assert!(message.contains("CPU features"), "{message}");
    let message = changed(|header| header.host.build ^= 1);
    assert!(message.contains("another build"), "{message}");
    let mut epoch = bytes.clone();
    epoch[8] += 1;
    fs::write(&state, &epoch).unwrap();
    let message = stale(&good);
    assert!(
        message.contains("epoch 2, this program knows epoch 1"),
        "{message}"
    );
    fs::write(&state, &bytes).unwrap();

    for (field, value) in [
        ("disks", json!([{"id": "root", "socket": "/x"}])),
        ("vsock", Value::Null),
        ("surprise", json!(1)),
    ] {
        let mut spec = good.clone();
        spec[field] = value;
        let message = refusal(&place, &spec, 2, "error");
        assert!(message.starts_with(field), "{message}");
    }
    assert_end(&finish(clone(&place, &good)), 0, "power_off");
}

#[test]
fn what_is_not_whole_is_refused_whichever_file_it_is() {
    if !has_kvm("what_is_not_whole_is_refused_whichever_file_it_is") {
        return;
    }
    let place = Place::new();
    captured(&place, &place.spec(&counting()));
    let good = clone_spec(&place, "refused");
    let damaged = |file: &str| {
        let message = refusal(&place, &good, 4, "template_damaged");
        assert!(message.contains(&format!("{file}: ")), "{message}");
    };
    for name in ["state", "memory", "window"] {
        let path = place.path("template").join(name);
        let len = fs::metadata(&path).unwrap().len();
        for offset in [0, len / 2, len - 1] {
            flip(&path, offset);
            damaged(name);
            flip(&path, offset);
        }
        let whole = fs::read(&path).unwrap();
        for shorter in [0, 1, len / 2, len - 1] {
            fs::File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .set_len(shorter)
                .unwrap();
            damaged(name);
            fs::write(&path, &whole).unwrap();
        }
        fs::write(&path, [&whole[..], &[0; 4096]].concat()).unwrap();
        damaged(name);
        fs::remove_file(&path).unwrap();
        damaged(name);
        fs::write(&path, &whole).unwrap();
    }
    assert_end(&finish(clone(&place, &good)), 0, "power_off");
}
