//! The configuration file: JSON in, checked [`Config`] out. Unknown fields are refused, and every
//! error names the field.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rundlet_jail::rights::Identity;
use serde::Deserialize;
use thiserror::Error;

use crate::disk::Serial;
use crate::scratch::Flush;
use crate::session::memory::Trust;

/// `sun_path` without its terminating zero.
const SOCKET_PATH_MAX: usize = 107;
const QUEUES_MAX: u16 = 16;
/// More would be a core burnt, not a latency saved.
const POLL_MAX: Duration = Duration::from_micros(200);

#[derive(Debug, Error)]
pub enum Error {
    #[error("cannot read the configuration {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("configuration is not what it should be")]
    Syntax(#[source] serde_json::Error),
    #[error("{field}: {problem}")]
    Field { field: String, problem: String },
}

/// What the daemon was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub listeners: Vec<ListenerConfig>,
    pub queues: u16,
    pub poll: Duration,
    /// Where it tells its figures.
    pub figures: Option<PathBuf>,
    /// Who the daemon becomes once everything is open, if it is to be shut in.
    pub jail: Option<Identity>,
}

/// One socket and the disk behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerConfig {
    pub socket: PathBuf,
    pub disk: DiskConfig,
    pub serial: Serial,
    pub trust: Trust,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskConfig {
    Image {
        path: PathBuf,
    },
    Scratch {
        template: PathBuf,
        directory: PathBuf,
        flush: Flush,
        /// Guests of this disk may be in the middle of their lives: clones of a template.
        resumes: bool,
        /// Where the layer stays when its session ends.
        keep: Option<PathBuf>,
    },
}

impl DiskConfig {
    /// Whether a guest may come with rings in use. An image can serve it: nothing of it was lost.
    pub fn resumes(&self) -> bool {
        match self {
            Self::Image { .. } => true,
            Self::Scratch { resumes, .. } => *resumes,
        }
    }

    /// Whether a layer may outlive its session.
    pub fn is_kept(&self) -> bool {
        matches!(self, Self::Scratch { keep: Some(_), .. })
    }
}

impl Config {
    pub fn parse(text: &str) -> Result<Self, Error> {
        let wire: Wire = serde_json::from_str(text).map_err(Error::Syntax)?;
        if wire.listeners.is_empty() {
            return Err(field("listeners", "must name at least one socket"));
        }
        if !(1..=QUEUES_MAX).contains(&wire.queues) {
            return Err(field("queues", format!("must be 1 to {QUEUES_MAX}")));
        }
        let poll = Duration::from_micros(wire.poll_us);
        if poll > POLL_MAX {
            return Err(field(
                "poll_us",
                format!("must be 0 to {}", POLL_MAX.as_micros()),
            ));
        }
        let jail = wire.jail.map(JailWire::check).transpose()?;
        let mut seen = HashSet::new();
        let mut listeners = Vec::with_capacity(wire.listeners.len());
        for (index, listener) in wire.listeners.into_iter().enumerate() {
            let listener = listener.check(&format!("listeners[{index}]"))?;
            if !seen.insert(listener.socket.clone()) {
                return Err(field(
                    format!("listeners[{index}].socket"),
                    "is already in use above",
                ));
            }
            if jail.is_some() && listener.disk.is_kept() {
                return Err(field(
                    format!("listeners[{index}].disk.scratch.keep"),
                    "cannot be in a jail: a layer gets its name through /proc",
                ));
            }
            listeners.push(listener);
        }
        if let Some(figures) = &wire.figures {
            check_socket("figures", figures)?;
            if !seen.insert(figures.clone()) {
                return Err(field("figures", "is already in use as a disk's socket"));
            }
        }
        Ok(Self {
            listeners,
            queues: wire.queues,
            poll,
            figures: wire.figures,
            jail,
        })
    }
}

fn field(field: impl Into<String>, problem: impl Into<String>) -> Error {
    Error::Field {
        field: field.into(),
        problem: problem.into(),
    }
}

fn check_socket(name: impl Into<String>, path: &Path) -> Result<(), Error> {
    let length = path.as_os_str().len();
    if (1..=SOCKET_PATH_MAX).contains(&length) {
        return Ok(());
    }
    let problem = format!("is a path of 1 to {SOCKET_PATH_MAX} bytes, this one has {length}");
    Err(field(name, problem))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    listeners: Vec<ListenerWire>,
    #[serde(default = "one")]
    queues: u16,
    #[serde(default = "default_poll_us")]
    poll_us: u64,
    figures: Option<PathBuf>,
    jail: Option<JailWire>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JailWire {
    uid: u32,
    gid: u32,
}

impl JailWire {
    fn check(self) -> Result<Identity, Error> {
        let Self { uid, gid } = self;
        Identity::new(uid, gid).ok_or_else(|| {
            let problem = format!("uid {uid} and gid {gid} must both be 1 to {}", u32::MAX - 1);
            field("jail", problem)
        })
    }
}

fn one() -> u16 {
    1
}

/// A guest that reads one block after the other needs 10 to 20 µs between them.
fn default_poll_us() -> u64 {
    32
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListenerWire {
    socket: PathBuf,
    disk: DiskWire,
    #[serde(default)]
    trusted_front_end: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DiskWire {
    image: Option<ImageWire>,
    scratch: Option<ScratchWire>,
    serial: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ImageWire {
    path: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ScratchWire {
    template: PathBuf,
    directory: PathBuf,
    #[serde(default)]
    flush: FlushWire,
    #[serde(default)]
    resumes: bool,
    keep: Option<PathBuf>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "snake_case")]
enum FlushWire {
    #[default]
    Volatile,
    Durable,
}

impl ListenerWire {
    fn check(self, at: &str) -> Result<ListenerConfig, Error> {
        check_socket(format!("{at}.socket"), &self.socket)?;
        let (disk, usual_serial) = match (self.disk.image, self.disk.scratch) {
            (Some(image), None) => (DiskConfig::Image { path: image.path }, "root"),
            (None, Some(scratch)) => (scratch.check(at)?, "scratch"),
            _ => {
                let problem = "must have exactly one of \"image\" and \"scratch\"";
                return Err(field(format!("{at}.disk"), problem));
            }
        };
        let serial = self.disk.serial.as_deref().unwrap_or(usual_serial);
        let serial = Serial::new(serial).ok_or_else(|| {
            field(
                format!("{at}.disk.serial"),
                "must be at most 20 printable ASCII characters",
            )
        })?;
        let trust = if self.trusted_front_end {
            Trust::Yes
        } else {
            Trust::No
        };
        Ok(ListenerConfig {
            socket: self.socket,
            disk,
            serial,
            trust,
        })
    }
}

impl ScratchWire {
    fn check(self, at: &str) -> Result<DiskConfig, Error> {
        if self.keep.as_ref().is_some_and(|path| !path.is_absolute()) {
            let problem = "must be an absolute path";
            return Err(field(format!("{at}.disk.scratch.keep"), problem));
        }
        let flush = match self.flush {
            FlushWire::Volatile => Flush::Volatile,
            FlushWire::Durable => Flush::Durable,
        };
        let Self {
            template,
            directory,
            resumes,
            keep,
            flush: _,
        } = self;
        Ok(DiskConfig::Scratch {
            template,
            directory,
            flush,
            resumes,
            keep,
        })
    }
}

#[cfg(test)]
mod tests;
