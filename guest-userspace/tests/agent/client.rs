//! An agent process, and the host's end of its protocol in the simplest form that is right.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rundlet_protocol::frame::{self, write_message};
use rundlet_protocol::{ExecSpec, ExitStatus, Failure, Frame, Reply, Request, Stream, VERSION};
use tempfile::TempDir;

/// No answer takes this long; a test that waits for one has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where this machine has a cgroup v2 tree, if it has one that can be used.
pub(crate) fn cgroup_root() -> Option<&'static str> {
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .into_iter()
        .find(|root| {
            let probe = format!("{root}/rundlet.probe.{}", std::process::id());
            fs::metadata(format!("{root}/cgroup.procs")).is_ok()
                && (fs::create_dir(&probe).is_ok() | fs::metadata(&probe).is_ok())
                && fs::remove_dir(&probe).is_ok()
        })
}

/// The cgroups below `root` that the agent with this pid has made.
pub(crate) fn leaves(pid: u32, root: Option<&str>) -> Vec<PathBuf> {
    let prefix = format!("rundlet.{pid}.");
    let entries = root
        .into_iter()
        .flat_map(|root| fs::read_dir(root).unwrap());
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .collect()
}

#[derive(Debug)]
pub(crate) struct Agent {
    process: Child,
    directory: TempDir,
    cgroup: Option<String>,
}

impl Agent {
    pub(crate) fn start() -> Self {
        Self::start_in(None)
    }

    pub(crate) fn start_in(cgroup: Option<&str>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let binary = std::env::var_os("RUNDLET_INIT")
            .unwrap_or_else(|| env!("CARGO_BIN_EXE_rundlet-init").into());
        let mut command = Command::new(binary);
        command
            .arg("serve")
            .arg(directory.path().join("agent.sock"))
            .stdin(Stdio::null());
        match cgroup {
            Some(root) => command.env("RUNDLET_CGROUP", root),
            None => command.env_remove("RUNDLET_CGROUP"),
        };
        let agent = Agent {
            process: command.spawn().unwrap(),
            directory,
            cgroup: cgroup.map(str::to_owned),
        };
        wait_until("the agent listens", || {
            UnixStream::connect(agent.socket()).is_ok()
        });
        agent
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("agent.sock")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.process.try_wait().unwrap().is_some()
    }

    /// A connection that has not said hello.
    pub(crate) fn connect(&self) -> Client {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client {
            stream,
            buffer: Vec::new(),
        }
    }

    /// A connection on which a request may follow.
    pub(crate) fn greet(&self) -> Client {
        self.try_greet().unwrap()
    }

    /// The same, where the agent may refuse.
    pub(crate) fn try_greet(&self) -> Result<Client, Failure> {
        let mut client = self.connect();
        let hello = Request::Hello { version: VERSION };
        // An agent that refuses may have closed by now.
        let _ = write_message(&mut client.stream, &hello);
        match client.reply() {
            Reply::Hello { version: VERSION } => Ok(client),
            Reply::Failed(failure) => Err(failure),
            other => panic!("no hello: {other:?}"),
        }
    }

    /// A connection on which `spec` runs, and the pid.
    pub(crate) fn start_command(&self, spec: ExecSpec) -> (Client, u32) {
        let mut client = self.greet();
        client.send(&Request::Exec(spec));
        match client.reply() {
            Reply::Started { pid } => (client, pid),
            other => panic!("not started: {other:?}"),
        }
    }

    /// Why `spec` does not start.
    pub(crate) fn failure(&self, spec: ExecSpec) -> Failure {
        let mut client = self.greet();
        client.send(&Request::Exec(spec));
        client.failure()
    }

    /// Runs `spec` to its end, without stdin.
    pub(crate) fn run(&self, spec: ExecSpec) -> Outcome {
        let (mut client, _) = self.start_command(spec);
        client.collect()
    }

    pub(crate) fn sh(&self, script: &str) -> Outcome {
        self.run(sh(script))
    }

    /// A line of /proc/PID/status in KiB.
    pub(crate) fn memory_kib(&self, key: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        let mut words = line.split_ascii_whitespace();
        words.nth(1).unwrap().parse().unwrap()
    }

    pub(crate) fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .unwrap()
            .count()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        // Its end took it by surprise, and it left its commands running.
        for leaf in leaves(self.pid(), self.cgroup.as_deref()) {
            let _ = fs::write(leaf.join("cgroup.kill"), "1");
            for _ in 0..200 {
                match fs::remove_dir(&leaf) {
                    Ok(()) => break,
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        }
    }
}

/// How a command went.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) status: ExitStatus,
}

impl Outcome {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }
}

#[derive(Debug)]
pub(crate) struct Client {
    stream: UnixStream,
    buffer: Vec<u8>,
}

impl Client {
    pub(crate) fn send(&mut self, request: &Request) {
        write_message(&mut self.stream, request).unwrap();
    }

    pub(crate) fn send_frame(&mut self, frame: &Frame<'_>) {
        frame.write(&mut self.stream).unwrap();
    }

    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub(crate) fn signal(&mut self, signal: i32) {
        self.send(&Request::Signal { signal });
    }

    pub(crate) fn stream(&self) -> UnixStream {
        self.stream.try_clone().unwrap()
    }

    /// The next frame; `None` at the end of the connection.
    pub(crate) fn frame(&mut self) -> Option<Frame<'_>> {
        frame::read(&mut self.stream, &mut self.buffer).unwrap()
    }

    /// The next frame, which has to be a message.
    pub(crate) fn reply(&mut self) -> Reply {
        match self.frame() {
            Some(Frame::Control(json)) => frame::parse_message(json).unwrap(),
            other => panic!("not a message: {other:?}"),
        }
    }

    /// The failure that ends the connection. Frames before it are skipped.
    pub(crate) fn failure(&mut self) -> Failure {
        loop {
            let frame = self
                .frame()
                .expect("the connection ended without a failure");
            let Frame::Control(json) = frame else {
                continue;
            };
            match frame::parse_message(json).unwrap() {
                Reply::Failed(failure) => {
                    assert!(self.frame().is_none(), "something after the last message");
                    return failure;
                }
                Reply::Started { .. } => {}
                other => panic!("not a failure: {other:?}"),
            }
        }
    }

    /// Reads data, giving credit for it, until `enough` says so.
    pub(crate) fn read_until(&mut self, enough: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let mut seen = Vec::new();
        while !enough(&seen) {
            match self.frame().expect("the connection ended early") {
                Frame::Data(stream, bytes) => {
                    let credit = u32::try_from(bytes.len()).unwrap();
                    seen.extend_from_slice(bytes);
                    self.send_frame(&Frame::Credit(stream, credit));
                }
                Frame::Credit(..) => {}
                other => panic!(
                    "unexpected {other:?} after {:?}",
                    String::from_utf8_lossy(&seen)
                ),
            }
        }
        seen
    }

    /// Everything up to the exit status. Checks the order at the end.
    pub(crate) fn collect(&mut self) -> Outcome {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let (mut out_ended, mut err_ended) = (false, false);
        loop {
            let (stream, count) = match self.frame().expect("the connection ended without a status")
            {
                Frame::Data(Stream::Stdout, bytes) if !out_ended => {
                    stdout.extend_from_slice(bytes);
                    (Stream::Stdout, bytes.len())
                }
                Frame::Data(Stream::Stderr, bytes) if !err_ended => {
                    stderr.extend_from_slice(bytes);
                    (Stream::Stderr, bytes.len())
                }
                Frame::Eof(Stream::Stdout) if !out_ended => {
                    out_ended = true;
                    continue;
                }
                Frame::Eof(Stream::Stderr) if !err_ended => {
                    err_ended = true;
                    continue;
                }
                Frame::Credit(Stream::Stdin, _) => continue,
                Frame::Control(json) => {
                    let Reply::Exited(status) = frame::parse_message(json).unwrap() else {
                        panic!("not an exit: {}", String::from_utf8_lossy(json));
                    };
                    assert!(out_ended, "a status before the end of stdout");
                    assert!(self.frame().is_none(), "something after the last message");
                    return Outcome {
                        stdout,
                        stderr,
                        status,
                    };
                }
                other => panic!("unexpected {other:?}"),
            };
            // The command may have ended meanwhile, and the agent closed its end.
            let credit = Frame::Credit(stream, u32::try_from(count).unwrap());
            let _ = credit.write(&mut self.stream);
        }
    }
}

pub(crate) fn argv(words: &[&str]) -> ExecSpec {
    ExecSpec {
        argv: words.iter().map(|&word| word.to_owned()).collect(),
        ..ExecSpec::default()
    }
}

pub(crate) fn sh(script: &str) -> ExecSpec {
    argv(&["sh", "-c", script])
}

/// Whether a process exists and is no zombie.
pub(crate) fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(") ").next().unwrap_or("").starts_with('Z'))
}

#[track_caller]
pub(crate) fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
