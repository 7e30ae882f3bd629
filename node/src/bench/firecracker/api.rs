//! Firecracker's API: JSON over HTTP/1.1 on a unix socket. One request, one connection.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

/// For one answer. A snapshot writes all of the guest's memory.
const PATIENCE: Duration = Duration::from_secs(120);

/// The longest answer that is read; errors are a sentence.
const MAX_BODY: u64 = 64 * 1024;

/// The longest head.
const MAX_HEAD: u64 = 16 * 1024;

/// Why a request was in vain.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    #[error("cannot talk to Firecracker's API socket {}", path.display())]
    Talk { path: PathBuf, source: io::Error },
    #[error("Firecracker refused {method} {path}: {status} {body}")]
    Refused {
        method: &'static str,
        path: &'static str,
        status: u16,
        body: String,
    },
    #[error("cannot describe the request")]
    Json(#[source] serde_json::Error),
}

/// A request of its API (`firecracker.yaml`).
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Action<'a> {
    Pause {
        state: &'static str,
    },
    CreateSnapshot {
        snapshot_type: &'static str,
        snapshot_path: &'a str,
        mem_file_path: &'a str,
    },
    LoadSnapshot {
        snapshot_path: &'a str,
        mem_backend: MemoryBackend<'a>,
        resume_vm: bool,
    },
}

#[derive(Debug, Serialize)]
pub(super) struct MemoryBackend<'a> {
    pub(super) backend_path: &'a str,
    pub(super) backend_type: &'static str,
}

impl Action<'_> {
    fn target(&self) -> (&'static str, &'static str) {
        match self {
            Self::Pause { .. } => ("PATCH", "/vm"),
            Self::CreateSnapshot { .. } => ("PUT", "/snapshot/create"),
            Self::LoadSnapshot { .. } => ("PUT", "/snapshot/load"),
        }
    }

    fn bytes(&self) -> Result<Vec<u8>, ApiError> {
        let (method, path) = self.target();
        let body = serde_json::to_string(self).map_err(ApiError::Json)?;
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        Ok(request.into_bytes())
    }
}

/// Does it on a connection to the API.
pub(super) fn act(socket: &Path, stream: &UnixStream, action: &Action<'_>) -> Result<(), ApiError> {
    let (method, path) = action.target();
    let bytes = action.bytes()?;
    let ask = || -> io::Result<(u16, String)> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        (&mut &*stream).write_all(&bytes)?;
        answer(stream)
    };
    let (status, body) = ask().map_err(|source| ApiError::Talk {
        path: socket.to_path_buf(),
        source,
    })?;
    if (200..300).contains(&status) {
        return Ok(());
    }
    Err(ApiError::Refused {
        method,
        path,
        status,
        body,
    })
}

/// The status and the body, which has a length or is none.
fn answer(stream: impl Read) -> io::Result<(u16, String)> {
    let bad = || io::Error::from(io::ErrorKind::InvalidData);
    let mut stream = BufReader::new(stream);
    let mut head = (&mut stream).take(MAX_HEAD);
    let mut line = String::new();
    head.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|it| it.parse().ok());
    let status = status.ok_or_else(bad)?;
    let mut length = 0;
    loop {
        line.clear();
        if head.read_line(&mut line)? == 0 {
            return Err(bad());
        }
        if line.trim_end().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().map_err(|_| bad())?;
        }
    }
    if length > MAX_BODY {
        return Err(bad());
    }
    let mut body = Vec::new();
    stream.take(length).read_to_end(&mut body)?;
    Ok((status, crate::sandbox::printable(&body)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_answer(answer: &'static str, action: &Action<'_>) -> (String, Result<(), ApiError>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let expected = action.bytes().unwrap().len();
        let server = std::thread::spawn(move || {
            let mut request = vec![0; expected];
            (&theirs).read_exact(&mut request).unwrap();
            (&theirs).write_all(answer.as_bytes()).unwrap();
            String::from_utf8(request).unwrap()
        });
        let result = act(Path::new("/api.sock"), &ours, action);
        (server.join().unwrap(), result)
    }

    #[test]
    fn requests_are_as_its_api_wants_them() {
        let load = Action::LoadSnapshot {
            snapshot_path: "/s/state",
            mem_backend: MemoryBackend {
                backend_path: "/s/memory",
                backend_type: "File",
            },
            resume_vm: true,
        };
        let (request, result) =
            with_answer("HTTP/1.1 204 \r\nServer: Firecracker API\r\n\r\n", &load);
        result.unwrap();
        let body = r#"{"snapshot_path":"/s/state","mem_backend":{"backend_path":"/s/memory","backend_type":"File"},"resume_vm":true}"#;
        assert_eq!(
            request,
            format!(
                "PUT /snapshot/load HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
        );
        let create = Action::CreateSnapshot {
            snapshot_type: "Full",
            snapshot_path: "s",
            mem_file_path: "m",
        };
        let (request, _) = with_answer("HTTP/1.1 204 \r\n\r\n", &create);
        assert!(request.starts_with("PUT /snapshot/create "), "{request}");
        assert!(
            request
                .ends_with(r#"{"snapshot_type":"Full","snapshot_path":"s","mem_file_path":"m"}"#)
        );
        let (request, _) = with_answer("HTTP/1.1 204 \r\n\r\n", &Action::Pause { state: "Paused" });
        assert!(request.starts_with("PATCH /vm ") && request.ends_with(r#"{"state":"Paused"}"#));
    }

    #[test]
    fn a_refusal_is_told_in_its_words() {
        let pause = Action::Pause { state: "Paused" };
        let answer = "HTTP/1.1 400 \r\nContent-Type: application/json\r\ncontent-length: 25\r\n\r\n{\"fault_message\":\"no vm\"}rest";
        let error = with_answer(answer, &pause).1.unwrap_err();
        assert_eq!(
            error.to_string(),
            "Firecracker refused PATCH /vm: 400 {\"fault_message\":\"no vm\"}"
        );
        for garbage in [
            "",
            "HTTP/1.1\r\n\r\n",
            "HTTP/1.1 200 \r\n",
            "HTTP/1.1 200 \r\nContent-Length: 99999999\r\n\r\n",
        ] {
            assert!(
                matches!(with_answer(garbage, &pause).1, Err(ApiError::Talk { .. })),
                "{garbage:?}"
            );
        }
    }
}
