//! Guests of a few instructions, and the program as their host starts it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const ENTRY: u64 = 16 << 20;

pub(crate) fn has_kvm(test: &str) -> bool {
    let there = Path::new("/dev/kvm").exists();
    if !there {
        eprintln!("skipped: {test}: this machine has no /dev/kvm");
    }
    there
}

/// out dx, al
pub(crate) fn out8(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}

/// out dx, eax
pub(crate) fn out32(port: u16, value: u32) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    [
        &[0x66, 0xba, low, high, 0xb8][..],
        &value.to_le_bytes(),
        &[0xef],
    ]
    .concat()
}

pub(crate) const FOR_EVER: [u8; 2] = [0xeb, 0xfe];
pub(crate) const INVALID: [u8; 2] = [0x0f, 0x0b];

/// An ELF kernel that is `code`.
pub(crate) fn kernel(code: &[u8]) -> Vec<u8> {
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    file.extend([2_u16, 62].into_iter().flat_map(u16::to_le_bytes));
    file.extend(1_u32.to_le_bytes());
    file.extend([ENTRY, 64, 0].into_iter().flat_map(u64::to_le_bytes));
    file.extend([0; 4]);
    file.extend(
        [64_u16, 56, 1, 0, 0, 0]
            .into_iter()
            .flat_map(u16::to_le_bytes),
    );
    file.extend([1_u32, 5].into_iter().flat_map(u32::to_le_bytes));
    let len = code.len() as u64;
    file.extend(
        [120, ENTRY, ENTRY, len, len, 4096]
            .into_iter()
            .flat_map(u64::to_le_bytes),
    );
    file.extend(code);
    file
}

/// A place of its own for one sandbox.
pub(crate) struct Place(pub(crate) tempfile::TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn spec(&self, code: &[u8]) -> Value {
        std::fs::write(self.path("vmlinux"), kernel(code)).unwrap();
        json!({
            "kernel": {"path": self.path("vmlinux")}, "memory_mib": 64, "vcpus": 1,
            "console": {"path": self.path("console.log"), "limit_bytes": 64},
            "vsock": {"cid": 3, "socket": self.path("vsock.sock")},
        })
    }

    pub(crate) fn left_over(&self) -> Vec<String> {
        let names = self.0.path().read_dir().unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".sock")).collect()
    }
}

pub(crate) fn start(spec: &Value, arguments: &[&str]) -> Child {
    run(&["boot", "--spec", "-"], spec, arguments)
}

/// Starts the program with a spec on its standard input.
pub(crate) fn run(command: &[&str], spec: &Value, arguments: &[&str]) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_rundlet-vmm"))
        .args(command)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let spec = spec.to_string();
    match child.stdin.take().unwrap().write_all(spec.as_bytes()) {
        // One that refuses its command line ends without reading.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => panic!("{error}"),
        _ => {}
    }
    child
}

/// Waits for the end, but not for ever.
pub(crate) fn finish(mut child: Child) -> Output {
    let begin = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begin.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("it hangs: {:?}", child.wait_with_output());
        }
        sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

pub(crate) fn wait_for(what: &str, done: impl Fn() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < PATIENCE, "{what} did not happen");
        sleep(Duration::from_millis(5));
    }
}

pub(crate) fn last_event(output: &Output) -> Value {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    serde_json::from_str(text.lines().last().unwrap_or_default()).unwrap()
}

pub(crate) fn assert_end(output: &Output, code: i32, reason: &str) {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    let event = last_event(output);
    assert_eq!(
        (&event["event"], &event["reason"]),
        (&json!("exit"), &json!(reason))
    );
}

/// A conversation over a control socket.
pub(crate) struct Control(BufReader<UnixStream>);

impl Control {
    pub(crate) fn connect(path: &Path) -> Self {
        wait_for("the control socket", || UnixStream::connect(path).is_ok());
        Self(BufReader::new(UnixStream::connect(path).unwrap()))
    }

    pub(crate) fn ask(&mut self, request: &Value) -> Value {
        let stream = self.0.get_mut();
        stream.write_all(format!("{request}\n").as_bytes()).unwrap();
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }
}
