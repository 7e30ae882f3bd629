//! The JSON that this program reads and writes, and nothing of what it means.
//!
//! In: the spec, one request a line on the control socket. Out: events on stdout, answers on the control
//! socket. Unknown fields are refused; an error names the path of the field it stumbled over.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize, Serializer};
use thiserror::Error;

/// The longest spec that is read; a generous hundred times what one needs.
pub const MAX_SPEC_BYTES: u64 = 256 * 1024;

/// The text is not a spec.
#[derive(Debug, Error)]
#[error("{field}: {message}")]
pub struct ParseError {
    field: String,
    message: String,
}

/// `boot --spec`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    pub kernel: Kernel,
    pub memory_mib: u32,
    pub vcpus: u8,
    #[serde(default = "default_window")]
    pub window_mib: u32,
    #[serde(default)]
    pub disks: Vec<Disk>,
    #[serde(default)]
    pub vsock: Option<Vsock>,
    #[serde(default)]
    pub console: Option<Console>,
    #[serde(default)]
    pub jail: Option<Jail>,
}

/// `kernel` of [`Spec`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    pub path: PathBuf,
    #[serde(default)]
    pub initrd: Option<PathBuf>,
    #[serde(default)]
    pub cmdline: String,
}

/// One of `disks` of [`Spec`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    pub id: String,
    pub socket: PathBuf,
    #[serde(default)]
    pub read_only: bool,
    #[serde(default = "default_queues")]
    pub queues: u16,
    #[serde(default = "default_queue_size")]
    pub queue_size: u16,
}

/// `vsock` of [`Spec`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vsock {
    pub cid: u32,
    pub socket: PathBuf,
}

/// `console` of [`Spec`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Console {
    #[serde(default)]
    pub path: Option<PathBuf>,
    #[serde(default)]
    pub fd: Option<i32>,
    #[serde(default = "default_console_limit")]
    pub limit_bytes: u64,
}

/// `jail` of a spec: what a zygote's child is shut in.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jail {
    pub uid: u32,
    pub gid: u32,
    /// The sandbox's directory, all that it will see.
    pub root: PathBuf,
}

fn default_window() -> u32 {
    2
}

fn default_queues() -> u16 {
    1
}

fn default_queue_size() -> u16 {
    128
}

fn default_console_limit() -> u64 {
    1 << 20
}

/// `clone --spec`: what a clone does not inherit from its template.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloneSpec {
    pub binding: BTreeMap<String, String>,
    #[serde(default)]
    pub disks: Vec<CloneDisk>,
    #[serde(default)]
    pub vsock: Option<CloneVsock>,
    #[serde(default)]
    pub console: Option<Console>,
    #[serde(default)]
    pub jail: Option<Jail>,
}

/// One of `disks` of [`CloneSpec`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloneDisk {
    pub id: String,
    pub socket: PathBuf,
}

/// `vsock` of [`CloneSpec`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloneVsock {
    pub socket: PathBuf,
}

impl CloneSpec {
    /// Reads a clone's spec from JSON text.
    pub fn parse(json: &[u8]) -> Result<Self, ParseError> {
        parse(json)
    }
}

impl Default for Console {
    /// Without a sink, which it needs.
    fn default() -> Self {
        Self {
            path: None,
            fd: None,
            limit_bytes: default_console_limit(),
        }
    }
}

impl Spec {
    /// Reads a spec from JSON text.
    pub fn parse(json: &[u8]) -> Result<Self, ParseError> {
        parse(json)
    }
}

/// One line to the control socket.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Request {
    Pause {},
    Resume {},
    Status {},
    Stop {},
    Capture(Capture),
    Touched(Touched),
}

/// `capture` of [`Request`].
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capture {
    pub directory: PathBuf,
    #[serde(default)]
    pub binding: BTreeMap<String, String>,
}

/// `touched` of [`Request`].
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Touched {
    /// The template's, of which this sandbox is a clone.
    pub directory: PathBuf,
    #[serde(default)]
    pub by: Deed,
}

/// What of a trial clone touched the pages that [`Touched`] asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Deed {
    /// All until it was renewed.
    #[default]
    Renewal,
    /// A command since then. Renewal has to have been asked for before.
    Command,
}

impl Request {
    /// Reads one request from one line.
    pub fn parse(line: &[u8]) -> Result<Self, ParseError> {
        parse(line)
    }
}

/// One line from the control socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    Paused {},
    Resumed {},
    Status {
        state: &'static str,
        vcpus: usize,
    },
    Stopping {},
    /// Bytes of data, holes not counted.
    Captured {
        memory_bytes: u64,
        window_bytes: u64,
    },
    /// Pages that were touched, and how many of these were written.
    Touched {
        pages: u64,
        written: u64,
    },
    Error {
        message: String,
    },
}

/// One line on stdout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    Timeline {
        /// Name and microseconds since exec, or since the request for a clone, in the order they
        /// happened.
        #[serde(serialize_with = "as_map")]
        instants_us: Vec<(&'static str, u64)>,
    },
    Exit {
        reason: &'static str,
        message: String,
    },
}

impl Event {
    /// The line, without its end.
    #[must_use]
    pub fn to_line(&self) -> String {
        serde_json::to_string(self).expect("maps with text keys and plain fields always serialise")
    }
}

impl Reply {
    /// The line, without its end.
    #[must_use]
    pub fn to_line(&self) -> String {
        serde_json::to_string(self).expect("plain fields always serialise")
    }
}

fn as_map<S: Serializer>(pairs: &[(&'static str, u64)], out: S) -> Result<S::Ok, S::Error> {
    out.collect_map(pairs.iter().copied())
}

pub(crate) fn parse<'de, T: Deserialize<'de>>(json: &'de [u8]) -> Result<T, ParseError> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let field = error.path().to_string();
        // The library's names for the whole document, and for a place it cannot tell.
        let field = if field == "." || field == "?" {
            "spec".to_owned()
        } else {
            field
        };
        ParseError {
            field,
            message: error.into_inner().to_string(),
        }
    })?;
    reader.end().map_err(|error| ParseError {
        field: "spec".to_owned(),
        message: error.to_string(),
    })?;
    Ok(value)
}

/// Prints an event on stdout. Nobody may be listening, which is their choice.
pub fn emit(event: &Event) {
    let mut out = io::stdout().lock();
    if let Err(error) = writeln!(out, "{}", event.to_line()).and_then(|()| out.flush()) {
        log::debug!("an event is lost: {error}");
    }
}
