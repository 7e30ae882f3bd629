//! The daemon's process, and what can be asked of it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{self, Receiver};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::fixture::{Fixture, RUNDLET, SOON, eventually};

fn program() -> &'static PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let status = Command::new(env!("CARGO"))
            .args([
                "build",
                "--quiet",
                "--package",
                "rundlet",
                "--example",
                "daemon",
            ])
            .status()
            .unwrap();
        assert!(status.success(), "building the daemon failed");
        Path::new(RUNDLET).with_file_name("examples").join("daemon")
    })
}

/// A fixture with the template `t` besides the image `img`.
pub(crate) fn with_template() -> Fixture {
    let fixture = Fixture::new();
    let output = fixture.rundlet(&["template", "build", "--memory", "128", "img", "t"]);
    assert!(output.status.success(), "{output:?}");
    fixture
}

pub(crate) struct Daemon<'a> {
    pub(crate) fixture: &'a Fixture,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<Value>,
    /// Came before they were waited for.
    early: Vec<Value>,
    tags: u64,
    /// What it says when it is open.
    pub(crate) opened: Value,
}

impl<'a> Daemon<'a> {
    pub(crate) fn start(fixture: &'a Fixture) -> Self {
        Self::start_with(fixture, &[])
    }

    pub(crate) fn start_with(fixture: &'a Fixture, environment: &[(&str, &str)]) -> Self {
        Self::start_by(fixture, Command::new(program()), environment)
    }

    /// With no more than so many descriptors.
    pub(crate) fn start_poor(fixture: &'a Fixture, descriptors: u32) -> Self {
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={descriptors}:{descriptors}"));
        command.arg(program());
        Self::start_by(fixture, command, &[])
    }

    fn start_by(fixture: &'a Fixture, mut command: Command, environment: &[(&str, &str)]) -> Self {
        let usual = fixture.command(&[]);
        for (name, value) in usual.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let mut child = command
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = sender.send(serde_json::from_str(&line).unwrap());
            }
        });
        let mut daemon = Self {
            fixture,
            stdin: child.stdin.take(),
            child,
            lines,
            early: Vec::new(),
            tags: 0,
            opened: Value::Null,
        };
        daemon.opened = daemon.next(|line| line.get("open").cloned());
        daemon
    }

    /// The first line, from now or before, of which `pick` makes something.
    fn next<T>(&mut self, pick: impl Fn(&Value) -> Option<T>) -> T {
        for index in 0..self.early.len() {
            if let Some(picked) = pick(&self.early[index]) {
                self.early.remove(index);
                return picked;
            }
        }
        loop {
            let line = self.lines.recv_timeout(SOON);
            let line = line.unwrap_or_else(|error| panic!("{error}; {:?}", self.early));
            match pick(&line) {
                Some(picked) => return picked,
                None => self.early.push(line),
            }
        }
    }

    /// Asks for something; its tag.
    pub(crate) fn request(&mut self, what: &str, mut request: Value) -> u64 {
        self.tags += 1;
        request["do"] = what.into();
        request["tag"] = self.tags.into();
        // It may have been killed.
        let _ = writeln!(self.stdin.as_mut().unwrap(), "{request}");
        self.tags
    }

    /// The answer to a request.
    pub(crate) fn answer(&mut self, tag: u64) -> Value {
        self.next(|line| (line["tag"] == tag).then(|| line["answer"].clone()))
    }

    pub(crate) fn ask(&mut self, what: &str, request: Value) -> Value {
        let tag = self.request(what, request);
        self.answer(tag)
    }

    pub(crate) fn of(&mut self, what: &str, id: &str) -> Value {
        self.ask(what, json!({ "id": id }))
    }

    /// Makes a sandbox, which has to work; its details.
    pub(crate) fn create(&mut self, wish: &Value) -> Value {
        let created = self.ask("create", json!({ "wish": wish }));
        assert_eq!(created["fresh"], true, "{created}");
        created["detail"].clone()
    }

    /// A clone of `t`; its id.
    pub(crate) fn clone_one(&mut self) -> String {
        let detail = self.create(&json!({"source": {"template": "t"}}));
        text(&detail["id"])
    }

    /// A machine with the image `img`; its id.
    pub(crate) fn boot_one(&mut self) -> String {
        let detail = self.create(&json!({"source": {"image": "img"}}));
        text(&detail["id"])
    }

    pub(crate) fn sh(&mut self, id: &str, script: &str) -> Value {
        self.ask("run", json!({"id": id, "script": script}))
    }

    /// The next event of this kind.
    pub(crate) fn event(&mut self, kind: &str) -> Value {
        self.next(|line| {
            let event = &line["event"];
            (event["event"] == kind).then(|| event.clone())
        })
    }

    /// Waits until it has ended; its phase and reason.
    pub(crate) fn end_of(&mut self, id: &str) -> (String, String) {
        let detail = self.of("wait", id);
        (text(&detail["phase"]), text(&detail["reason"]))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// As an operator's `kill -9`.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// It kills itself.
    pub(crate) fn await_death(mut self) {
        self.child.wait().unwrap();
    }

    /// As a restart of the service.
    pub(crate) fn close(mut self) {
        drop(self.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }

    /// Nothing of a sandbox is there: no process, no directory, no slot that is not free.
    pub(crate) fn is_empty(&mut self) -> bool {
        let stats = self.ask("stats", json!({}));
        let living = entries(&self.fixture.path("run/serve/s"));
        living.is_empty()
            && vmms(self.fixture).is_empty()
            && stats["free"] == stats["slots"]
            && stats["memory"] == 0
    }

    pub(crate) fn eventually_empty(&mut self) {
        eventually("nothing of a sandbox", || self.is_empty());
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

pub(crate) fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// Processes of VMMs that are no zygotes.
pub(crate) fn vmms(fixture: &Fixture) -> Vec<u32> {
    of_program(fixture, |line| {
        line.starts_with("rundlet-vmm boot") || line.starts_with("rundlet-vmm clone")
    })
}

pub(crate) fn zygotes(fixture: &Fixture) -> Vec<u32> {
    of_program(fixture, |line| line.contains("rundlet-vmm zygote"))
}

pub(crate) fn backends(fixture: &Fixture) -> Vec<u32> {
    of_program(fixture, |line| line.contains("vhost-blk-ro serve"))
}

fn of_program(fixture: &Fixture, pick: impl Fn(&str) -> bool) -> Vec<u32> {
    let all = fixture.processes().into_iter();
    all.filter(|(_, line)| pick(line))
        .map(|(pid, _)| pid)
        .collect()
}

pub(crate) fn kill(pid: &Value) {
    let pid = i32::try_from(pid.as_i64().unwrap()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}
