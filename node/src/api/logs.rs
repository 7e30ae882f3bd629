//! `/v1/sandboxes/{id}/logs`: the guest's console.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path as Name, State};
use axum::response::Response;

use super::App;
use super::extract::{Parameters, switch};
use super::node::{HostError, Node};
use super::problem::Problem;
use super::sandboxes::is_final;
use super::stream::{self, Sink};
use crate::error::PathError;

/// Bytes that are read at a time.
const PIECE: usize = 64 * 1024;

/// How often a console is looked at that somebody follows.
const PAUSE: Duration = Duration::from_millis(200);

/// The guest's console: its kernel and what its init prints. Bounded; a guest cannot fill the host with it.
#[utoipa::path(
    get, path = "/v1/sandboxes/{id}/logs", tag = "sandboxes", operation_id = "sandbox_logs",
    params(("id" = String, Path), ("follow" = Option<bool>, Query, description = "go on until the sandbox has ended")),
    responses((status = 200, content_type = "text/plain", body = String, description = "Bytes, as the guest wrote them"))
)]
pub(super) async fn logs(
    State(app): State<App>,
    Name(id): Name<String>,
    mut parameters: Parameters,
) -> Result<Response, Problem> {
    let follow = switch(&mut parameters, "follow")?;
    parameters.end()?;
    let asked = id.clone();
    let console = app
        .short(move |node| Console::open(&node.console(&asked)?))
        .await?;
    let follower = app.clone();
    Ok(stream::answer(
        &app,
        "text/plain; charset=utf-8",
        move |sink| async move {
            pass_on(&follower, &id, console, follow, &sink).await;
        },
    ))
}

async fn pass_on(app: &App, id: &str, mut console: Console, follow: bool, sink: &Sink) {
    loop {
        // Asked before the file is read to its end: nothing comes after it then.
        let asked = id.to_owned();
        let step = app.call(move |node| {
            let more = follow && lives(node, &asked);
            let piece = console.read();
            (console, piece, more)
        });
        let Ok((back, piece, more)) = step.await else {
            return;
        };
        console = back;
        match piece {
            Err(error) => {
                log::warn!("the console of sandbox {id} cannot be read: {error}");
                return;
            }
            Ok(piece) if piece.is_empty() => {
                if !more {
                    return;
                }
                tokio::time::sleep(PAUSE).await;
            }
            Ok(piece) => {
                if !sink.send(piece).await {
                    return;
                }
            }
        }
    }
}

fn lives(node: &dyn Node, id: &str) -> bool {
    node.inspect(id)
        .is_ok_and(|detail| !is_final(detail.summary.phase))
}

/// A console's file, read from its beginning.
struct Console {
    file: File,
    at: u64,
}

impl Console {
    /// The VMM can write to the directory, and may be the guest's by now: what is opened is a file of its own, not
    /// what a link points to, and not something that blocks.
    fn open(path: &Path) -> Result<Self, HostError> {
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(i32::try_from(flags.bits()).unwrap_or_default())
            .open(path)
            .map_err(PathError::at("open console", path))?;
        let metadata = file.metadata().map_err(PathError::at("look at", path))?;
        if !metadata.is_file() {
            let error = io::Error::other("it is no regular file");
            return Err(PathError::at("read console", path)(error).into());
        }
        Ok(Self { file, at: 0 })
    }

    /// The next piece; empty when there is none now.
    fn read(&mut self) -> io::Result<Bytes> {
        // It was begun anew.
        if self.file.metadata()?.len() < self.at {
            self.at = 0;
        }
        self.file.seek(SeekFrom::Start(self.at))?;
        let mut piece = vec![0; PIECE];
        let count = self.file.read(&mut piece)?;
        piece.truncate(count);
        self.at = self.at.saturating_add(count as u64);
        Ok(piece.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_console_is_read_on_and_from_the_start_when_it_is_begun_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        fs::write(&path, "one\n").unwrap();
        let mut console = Console::open(&path).unwrap();
        assert_eq!(console.read().unwrap(), "one\n");
        assert!(console.read().unwrap().is_empty());
        fs::write(&path, "x\n").unwrap();
        assert_eq!(console.read().unwrap(), "x\n");
    }

    #[test]
    fn a_console_that_leads_elsewhere_is_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let secret = directory.path().join("secret");
        fs::write(&secret, "secret").unwrap();
        let link = directory.path().join("console.log");
        symlink(&secret, &link).unwrap();
        assert!(Console::open(&link).is_err());
        assert!(Console::open(directory.path()).is_err());
    }
}
