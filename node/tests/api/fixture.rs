//! A daemon over the double, and a client that says exactly what it is told to.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// The longest that anything here may take.
pub(crate) const SOON: Duration = Duration::from_secs(30);

pub(crate) const RUNDLET: &str = env!("CARGO_BIN_EXE_rundlet");

/// Programs that cargo does not promise to have built for this test: the daemon and the agent.
pub(crate) fn built() -> &'static (PathBuf, PathBuf) {
    static BUILT: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();
    BUILT.get_or_init(|| {
        for args in [
            ["--package", "rundlet", "--example", "served"].as_slice(),
            &["--package", "rundlet-init"],
        ] {
            let mut command = Command::new(env!("CARGO"));
            let status = command.args(["build", "--quiet"]).args(args).status();
            assert!(status.unwrap().success(), "building {args:?} failed");
        }
        let directory = Path::new(RUNDLET).parent().unwrap();
        (
            directory.join("examples/served"),
            directory.join("rundlet-init"),
        )
    })
}

/// A daemon that serves; dropped, it is killed.
pub(crate) struct Served {
    directory: tempfile::TempDir,
    daemon: Child,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut pairs = self.head.lines().filter_map(|line| line.split_once(": "));
        let found = pairs.find(|(it, _)| it.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value)
    }

    /// A refusal: its kind and its field.
    pub(crate) fn problem(&self) -> (String, String) {
        assert_eq!(
            self.header("content-type"),
            Some("application/problem+json"),
            "{self:?}"
        );
        let json = self.json();
        assert_eq!(json["status"], self.status);
        let text = |name: &str| json[name].as_str().unwrap_or_default().to_owned();
        (text("type").replace("/problems/", ""), text("field"))
    }
}

impl Served {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    /// With more words for the daemon.
    pub(crate) fn with(more: impl FnOnce(&mut Command)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (program, agent) = built();
        let mut command = Command::new(program);
        command
            .arg("--socket")
            .arg(directory.path().join("api.sock"))
            .arg("--directory")
            .arg(directory.path().join("node"))
            .env("RUNDLET_DOUBLE_AGENT", agent)
            .stdin(Stdio::null());
        more(&mut command);
        let daemon = command.spawn().unwrap();
        let served = Self { directory, daemon };
        served.eventually_answers();
        served
    }

    fn eventually_answers(&self) {
        eventually("an answer", || UnixStream::connect(self.socket()).is_ok());
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("api.sock")
    }

    pub(crate) fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream
    }

    /// Sends a request without waiting for its answer. `head` are lines of headers.
    pub(crate) fn send(&self, method: &str, path: &str, head: &[&str], body: &str) -> UnixStream {
        let mut stream = self.connect();
        let mut lines = vec![format!("{method} {path} HTTP/1.1"), "Host: x".into()];
        lines.extend(head.iter().map(|it| (*it).to_owned()));
        lines.push(format!("Content-Length: {}", body.len()));
        let text = format!("{}\r\n\r\n{body}", lines.join("\r\n"));
        // It may have been refused before it was read.
        let _ = stream.write_all(text.as_bytes());
        stream
    }

    pub(crate) fn ask(&self, method: &str, path: &str, head: &[&str], body: &str) -> Answer {
        let head = [head, &["Connection: close"]].concat();
        answer(self.send(method, path, &head, body))
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], "")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        let head = ["Content-Type: application/json"];
        self.ask("POST", path, &head, &body.to_string())
    }

    /// A sandbox with these labels: its id.
    pub(crate) fn create(&self, labels: &Value) -> String {
        let wish = json!({"source": {"image": "img"}, "labels": labels});
        let answer = self.post("/v1/sandboxes", &wish);
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.json()["id"].as_str().unwrap().to_owned()
    }

    pub(crate) fn sandboxes(&self) -> Vec<Value> {
        let list = self.get("/v1/sandboxes").json();
        list["sandboxes"].as_array().unwrap().clone()
    }

    /// `rundlet` as a client of this daemon.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(RUNDLET);
        command
            .args(args)
            .env("RUNDLET_SOCKET", self.socket())
            .env("RUNDLET_STORE", self.path("no-store"))
            .env_remove("RUST_LOG")
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn tell(&self, signal: Signal) {
        let pid = i32::try_from(self.daemon.id()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    /// The daemon's exit code, which has to come soon.
    pub(crate) fn code(&mut self) -> Option<i32> {
        let mut status = None;
        eventually("the end of the daemon", || {
            status = self.daemon.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().code()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// Reads an answer to the end of its connection.
pub(crate) fn answer(mut stream: UnixStream) -> Answer {
    let mut bytes = Vec::new();
    // Refused in the middle of a body, a connection ends with a reset.
    let _ = stream.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|it| it.parse().ok());
    let body = if head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked")
    {
        unchunk(body)
    } else {
        body.to_owned()
    };
    Answer {
        status: status.unwrap_or_else(|| panic!("no answer: {text:?}")),
        head: head.to_owned(),
        body,
    }
}

fn unchunk(mut text: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = text.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        whole.push_str(&rest[..size]);
        text = rest[size..].trim_start_matches("\r\n");
    }
    whole
}

pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < SOON, "not within {SOON:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
