//! The VMM's control socket, of which a template's builder needs two requests: `capture` of the sandbox that becomes the
//! template, `touched` of its first clone.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::template::Binding;

/// The longest reply that is read.
const MAX_REPLY: u64 = 64 * 1024;

/// Why the VMM did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("cannot talk to the VMM's control socket {}", path.display())]
    Talk { path: PathBuf, source: io::Error },
    #[error("the VMM did not {what} within {} seconds", limit.as_secs())]
    Late { what: &'static str, limit: Duration },
    #[error("the VMM cannot {what}: {why}")]
    Refused { what: &'static str, why: String },
    #[error("asked to {what}, the VMM answered {answer:?}")]
    Answer { what: &'static str, answer: String },
    #[error("cannot describe the request")]
    Json(#[source] serde_json::Error),
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Request<'a> {
    Capture {
        directory: &'a Path,
        binding: &'a Binding,
    },
    Touched {
        directory: &'a Path,
        by: Deed,
    },
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Reply {
    Captured(Captured),
    Touched(Touched),
    Error { message: String },
}

/// What of a clone touched the pages that are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Deed {
    /// All until it was renewed.
    Renewal,
    /// A command since then. Renewal has to have been asked for before.
    Command,
}

/// What was written, holes not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Captured {
    pub memory_bytes: u64,
    pub window_bytes: u64,
}

/// Pages of guest memory that a clone has touched, and how many of these it has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Touched {
    pub pages: u64,
    pub written: u64,
}

/// Has the VMM pause the sandbox for good and write it into `directory`.
pub(super) fn capture(
    socket: &Path,
    directory: &Path,
    binding: &Binding,
    limit: Duration,
) -> Result<Captured, ControlError> {
    let what = "capture the sandbox";
    let request = Request::Capture { directory, binding };
    ask(socket, &request, what, limit, |reply| match reply {
        Reply::Captured(captured) => Some(captured),
        _ => None,
    })
}

/// Has a clone's VMM write into `directory`, its template's, which pages the clone has touched.
pub(super) fn note_touched(
    socket: &Path,
    directory: &Path,
    by: Deed,
    limit: Duration,
) -> Result<Touched, ControlError> {
    let what = "tell which pages were touched";
    let request = Request::Touched { directory, by };
    ask(socket, &request, what, limit, |reply| match reply {
        Reply::Touched(touched) => Some(touched),
        _ => None,
    })
}

fn ask<T>(
    socket: &Path,
    request: &Request<'_>,
    what: &'static str,
    limit: Duration,
    wanted: impl FnOnce(Reply) -> Option<T>,
) -> Result<T, ControlError> {
    let mut line = serde_json::to_vec(request).map_err(ControlError::Json)?;
    line.push(b'\n');
    let reply = exchange(socket, &line, limit).map_err(|source| match source.kind() {
        // What a read says after its timeout, socket(7).
        io::ErrorKind::WouldBlock => ControlError::Late { what, limit },
        _ => ControlError::Talk {
            path: socket.to_path_buf(),
            source,
        },
    })?;
    match serde_json::from_str(&reply) {
        Ok(Reply::Error { message: why }) => return Err(ControlError::Refused { what, why }),
        Ok(answer) => wanted(answer),
        Err(_) => None,
    }
    .ok_or(ControlError::Answer {
        what,
        answer: reply,
    })
}

fn exchange(socket: &Path, line: &[u8], limit: Duration) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    stream.write_all(line)?;
    let mut reply = String::new();
    BufReader::new(stream.take(MAX_REPLY)).read_line(&mut reply)?;
    if reply.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    reply.truncate(reply.trim_end().len());
    Ok(reply)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::thread;

    fn with_answer(answer: &'static str) -> Result<Captured, ControlError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        let listener = UnixListener::bind(&path).unwrap();
        let vmm = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            (&stream).write_all(answer.as_bytes()).unwrap();
            if answer.is_empty() {
                // Until the other side gives up.
                let _ = (&stream).read(&mut [0]);
            }
            line
        });
        let binding = Binding {
            kernel: "k".into(),
            initrd: "i".into(),
            image: "m".into(),
        };
        let limit = Duration::from_millis(if answer.is_empty() { 50 } else { 5000 });
        let result = capture(&path, Path::new("/some/where"), &binding, limit);
        let expected = r#"{"capture":{"directory":"/some/where","binding":{"kernel":"k","initrd":"i","image":"m"}}}"#;
        assert_eq!(vmm.join().unwrap(), format!("{expected}\n"));
        result
    }

    #[test]
    fn an_answer_to_another_question_is_none() {
        let answer = r#"{"touched":{"pages":3,"written":2}}"#;
        assert!(matches!(
            with_answer(answer),
            Err(ControlError::Answer { .. })
        ));
        let parsed: Reply = serde_json::from_str(answer).unwrap();
        let expected = Touched {
            pages: 3,
            written: 2,
        };
        assert!(matches!(parsed, Reply::Touched(touched) if touched == expected));
    }

    #[test]
    fn the_answer_is_told_as_it_is() {
        let captured = with_answer("{\"captured\":{\"memory_bytes\":5,\"window_bytes\":6}}\n");
        assert_eq!(captured.unwrap().memory_bytes, 5);
        let refused = with_answer("{\"error\":{\"message\":\"disk full\"}}\n").unwrap_err();
        assert!(refused.to_string().ends_with("disk full"), "{refused}");
        let other = with_answer("{\"paused\":{}}\n").unwrap_err();
        assert!(matches!(other, ControlError::Answer { .. }), "{other}");
        let late = with_answer("").unwrap_err();
        assert!(matches!(late, ControlError::Late { .. }), "{late}");
    }
}
