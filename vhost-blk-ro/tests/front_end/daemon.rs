//! The daemon under test, with a 4 MiB image, a 16 MiB scratch template, and a directory of its own.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Byte `i` of the test image.
pub fn byte(i: u64) -> u8 {
    u8::try_from((i / 512 * 31 + i * 7) % 251).unwrap()
}

pub fn pattern(offset: u64, len: u64) -> Vec<u8> {
    (offset..offset + len).map(byte).collect()
}

pub struct Daemon {
    child: Child,
    events: BufReader<ChildStdout>,
    dir: TempDir,
    config: String,
}

impl Daemon {
    /// `settings` goes into the top level of the configuration, with a comma in front; DIR in it is
    /// the daemon's directory.
    pub fn start(settings: &str) -> Self {
        Self::start_scratch(settings, "")
    }

    /// `scratch` goes into the scratch disk's settings, with a comma behind; DIR in it is the
    /// daemon's directory.
    pub fn start_scratch(settings: &str, scratch: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("image"), pattern(0, 4 << 20)).unwrap();
        let template = std::fs::File::create(dir.path().join("template")).unwrap();
        template.set_len(16 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&template, &pattern(0, 65536), 0).unwrap();
        let here = |text: &str| text.replace("DIR", &dir.path().display().to_string());
        let scratch = here(scratch);
        let config = config(dir.path(), &here(settings))
            .replace(r#"{"template""#, &format!(r#"{{{scratch} "template""#));
        Self::start_in(dir, config)
    }

    /// For clones whose scratch begins as `template`.
    pub fn start_clones(template: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("image"), pattern(0, 4 << 20)).unwrap();
        let usual = dir.path().join("template").display().to_string();
        let config = config(dir.path(), "")
            .replace(&usual, &template.display().to_string())
            .replace(r#"{"template""#, r#"{"resumes": true, "template""#);
        Self::start_in(dir, config)
    }

    /// With a configuration of the caller's; only the log is here.
    pub fn start_with(config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::start_in(dir, config.to_owned())
    }

    fn start_in(dir: TempDir, config: String) -> Self {
        let (child, events) = spawn(dir.path(), &config);
        Self {
            child,
            events,
            dir,
            config,
        }
    }

    /// The next line on its standard output.
    pub fn event(&mut self) -> String {
        let mut line = String::new();
        self.events.read_line(&mut line).unwrap();
        line
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root.sock")
    }

    pub fn scratch(&self) -> PathBuf {
        self.dir.path().join("scratch.sock")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// Without giving it time for anything.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn restart(&mut self) {
        (self.child, self.events) = spawn(self.dir.path(), &self.config);
    }

    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// A number from `/proc/PID/status`.
    pub fn status(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(field))
            .unwrap();
        line.trim_start_matches(':')
            .split_whitespace()
            .next()
            .unwrap()
            .parse()
            .unwrap()
    }

    pub fn threads(&self) -> u64 {
        self.status("Threads")
    }

    /// Sessions under way, by the log.
    pub fn sessions(&self) -> usize {
        let log = self.log();
        let count = |what: &str| log.matches(what).count();
        count(": started\n") - count(": ended: ") - count(": refused: ")
    }

    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .unwrap()
            .count()
    }

    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Already dead in the tests that are about that.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Until `condition` holds; `otherwise` says what is wrong when it never does.
pub fn wait_for(mut condition: impl FnMut() -> bool, otherwise: impl Fn() -> String) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "{}", otherwise());
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn config(dir: &Path, settings: &str) -> String {
    let at = |name: &str| dir.join(name).display().to_string();
    format!(
        r#"{{"listeners": [
            {{"socket": "{}", "disk": {{"image": {{"path": "{}"}}}}}},
            {{"socket": "{}", "disk": {{"scratch": {{"template": "{}", "directory": "{}"}}}}}}
        ]{settings}}}"#,
        at("root.sock"),
        at("image"),
        at("scratch.sock"),
        at("template"),
        dir.display(),
    )
}

pub fn spawn(dir: &Path, config: &str) -> (Child, BufReader<ChildStdout>) {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(dir.join("log"))
        .unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_vhost-blk-ro"))
        .args(["serve", "--config", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(config.as_bytes())
        .unwrap();
    let mut events = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    events.read_line(&mut line).unwrap();
    assert_eq!(
        line,
        "{\"event\":\"listening\"}\n",
        "the daemon's log is in {}",
        dir.display()
    );
    (child, events)
}
