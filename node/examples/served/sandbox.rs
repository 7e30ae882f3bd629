//! A sandbox of the double: a record, and an agent without a machine around it.

use std::env;
use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use rundlet_node::host::model::{CreateSandbox, Detail, Phase, Summary};

/// One of them.
pub(crate) struct Sandbox {
    pub(crate) wish: CreateSandbox,
    pub(crate) key: Option<String>,
    pub(crate) phase: Phase,
    pub(crate) created_ms: u64,
    pub(crate) ended_ms: Option<u64>,
    pub(crate) commands: u32,
    pub(crate) directory: PathBuf,
    agent: Option<Child>,
}

impl Sandbox {
    pub(crate) fn new(
        wish: CreateSandbox,
        key: Option<String>,
        directory: PathBuf,
        created_ms: u64,
    ) -> io::Result<Self> {
        fs::create_dir_all(&directory)?;
        fs::write(
            directory.join("console.log"),
            "Linux version 6.12 (double)\n",
        )?;
        Ok(Self {
            wish,
            key,
            phase: Phase::Creating,
            created_ms,
            ended_ms: None,
            commands: 0,
            directory,
            agent: None,
        })
    }

    /// Its agent, from now on.
    pub(crate) fn take(&mut self, agent: Child) {
        self.agent = Some(agent);
    }

    pub(crate) fn end(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            // It has ended by itself, perhaps.
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }

    pub(crate) fn summary(&self, id: &str) -> Summary {
        Summary {
            id: id.into(),
            phase: self.phase,
            reason: None,
            source: self.wish.source.clone(),
            labels: self.wish.labels.clone(),
            created_ms: self.created_ms,
            ended_ms: self.ended_ms,
        }
    }

    pub(crate) fn detail(&self, id: &str) -> Detail {
        Detail {
            summary: self.summary(id),
            memory_mib: self.wish.memory_mib.unwrap_or(256),
            vcpus: self.wish.vcpus.unwrap_or(1),
            limits: self.wish.limits.clone(),
            timeout_s: self.wish.timeout_s,
            timeline_us: [("ready".to_owned(), 1000)].into(),
            cgroup: Some("/rundlet/slot-0000".into()),
            pid: self.agent.as_ref().map(Child::id),
            memory_bytes: Some(1 << 20),
            cpu_us: Some(2000),
            commands: self.commands,
            recovered: false,
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.end();
    }
}

/// Starts an agent, which goes with this process.
pub(crate) fn start_agent(directory: &Path) -> io::Result<Child> {
    let program = env::var_os("RUNDLET_DOUBLE_AGENT")
        .ok_or_else(|| io::Error::other("RUNDLET_DOUBLE_AGENT names no rundlet-init"))?;
    let agent = Command::new("setpriv")
        .args(["--pdeathsig", "KILL"])
        .arg(program)
        .arg("serve")
        .arg(directory.join("agent.sock"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    dial(directory)?;
    Ok(agent)
}

/// The agent's socket is there, and listened on, a moment after its start.
pub(crate) fn dial(directory: &Path) -> io::Result<UnixStream> {
    let path = directory.join("agent.sock");
    for _ in 0..1000 {
        match UnixStream::connect(&path) {
            Ok(stream) => return Ok(stream),
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
    UnixStream::connect(&path)
}
