//! What the daemon tells whoever started it: one JSON object per line on standard output.

use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event<'a> {
    /// Every socket is bound.
    Listening,
    /// A layer is at `path`, complete and on the medium.
    Kept { path: &'a Path },
    /// A session with `keep` is over and nothing was published.
    NotKept { path: &'a Path, reason: &'a str },
}

/// Says `event`, in one piece whatever other threads say.
pub fn say(event: &Event<'_>) -> io::Result<()> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line)?;
    out.flush()
}
