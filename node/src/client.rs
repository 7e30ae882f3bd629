//! A client of the daemon: what the verbs of the command line that talk to it do.
//!
//! Blocking: a request at a time, each on a connection of its own. [`session`] carries a command's streams over an
//! upgraded connection, with the code that talks to an agent in this process.

pub mod session;

use std::env;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Runtime;

use crate::api::exec::PROTOCOL;
use crate::api::figures::Health;
use crate::api::problem::Problem;
use crate::api::sandboxes::{SandboxList, Stop};
use crate::host::model::{CreateSandbox, Detail, Summary};
use crate::places;

/// Names the daemon's socket.
pub const SOCKET: &str = "RUNDLET_SOCKET";

/// Longest answer that is kept whole.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// How long a daemon may take to say that it is there.
const GREETING: Duration = Duration::from_secs(2);

/// Why the daemon was not asked, or did not do it.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(
        "no daemon answers at {}; start one with `rundlet serve`, or name its socket with {SOCKET}", socket.display()
    )]
    NoDaemon { socket: PathBuf, source: io::Error },
    #[error(
        "{} may not be opened; become a member of the group that the daemon's configuration names as socket.group, or root", .0.display()
    )]
    Denied(PathBuf),
    #[error("the daemon's answer did not come through")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("{}", words(.0))]
    Refused(Problem),
    #[error("the daemon answered {status}, which is not in the API; is it of another version?")]
    Unexpected { status: StatusCode },
    #[error("the daemon's answer is not understood; is it of another version?")]
    Answer(#[source] serde_json::Error),
    #[error("cannot write what the daemon said")]
    Write(#[source] io::Error),
    #[error("cannot make a client")]
    Runtime(#[source] io::Error),
}

/// The field is named by most sentences already.
fn words(problem: &Problem) -> String {
    match &problem.field {
        Some(field) if !problem.detail.contains(field.as_str()) => {
            format!("{field}: {}", problem.detail)
        }
        _ => problem.detail.clone(),
    }
}

fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
    ClientError::Broken(error.into())
}

/// Where the daemon's socket is: what the environment names, or the usual place.
#[must_use]
pub fn socket() -> PathBuf {
    if let Some(told) = env::var_os(SOCKET) {
        return told.into();
    }
    let runtime = env::var_os(places::RUNTIME).map(PathBuf::from);
    runtime
        .unwrap_or_else(|| "/run/rundlet".into())
        .join("api.sock")
}

/// A daemon's client.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    runtime: Runtime,
}

impl Client {
    /// Nothing is asked yet.
    ///
    /// # Errors
    /// The process has no room for it.
    pub fn new(socket: &Path) -> Result<Self, ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ClientError::Runtime)?;
        Ok(Self {
            socket: socket.into(),
            runtime,
        })
    }

    /// Whether a daemon answers, and soon.
    ///
    /// # Errors
    /// None does.
    pub fn health(&self) -> Result<Health, ClientError> {
        let asked = async {
            let answer = self.ask(Method::GET, "/v1/health", &[], None);
            let answer = tokio::time::timeout(GREETING, answer).await;
            answer.map_err(|error| ClientError::NoDaemon {
                socket: self.socket.clone(),
                source: io::Error::new(io::ErrorKind::TimedOut, error),
            })?
        };
        parse(&self.runtime.block_on(asked)?)
    }

    /// # Errors
    /// As all of them: no daemon answers, or it refuses.
    pub fn create(&self, wish: &CreateSandbox, key: Option<&str>) -> Result<Detail, ClientError> {
        let headers = key.map(|key| ("Idempotency-Key", key));
        let answer = self.ask(
            Method::POST,
            "/v1/sandboxes",
            headers.as_slice(),
            json(wish)?,
        );
        parse(&self.runtime.block_on(answer)?)
    }

    /// `query` comes after the question mark; see [`escape`].
    ///
    /// # Errors
    /// See [`Client::create`].
    pub fn list(&self, query: &str) -> Result<Vec<Summary>, ClientError> {
        let list: SandboxList = self.get(&format!("/v1/sandboxes?{query}"))?;
        Ok(list.sandboxes)
    }

    /// # Errors
    /// See [`Client::create`].
    pub fn inspect(&self, id: &str) -> Result<Detail, ClientError> {
        self.get(&sandbox(id, ""))
    }

    /// # Errors
    /// See [`Client::create`].
    pub fn stop(&self, id: &str, grace_s: Option<u64>) -> Result<(), ClientError> {
        let path = sandbox(id, "/stop");
        let answer = self.ask(Method::POST, &path, &[], json(&Stop { grace_s })?);
        self.runtime.block_on(answer).map(drop)
    }

    /// # Errors
    /// See [`Client::create`].
    pub fn kill(&self, id: &str) -> Result<(), ClientError> {
        let path = sandbox(id, "/kill");
        let answer = self.ask(Method::POST, &path, &[], None);
        self.runtime.block_on(answer).map(drop)
    }

    /// # Errors
    /// See [`Client::create`].
    pub fn remove(&self, id: &str, force: bool) -> Result<(), ClientError> {
        let path = sandbox(id, if force { "?force=true" } else { "" });
        let answer = self.ask(Method::DELETE, &path, &[], None);
        self.runtime.block_on(answer).map(drop)
    }

    /// Removes an image or a template of the daemon's store. `kind` is `images` or `templates`.
    ///
    /// # Errors
    /// See [`Client::create`].
    pub fn remove_from_store(&self, kind: &str, name: &str) -> Result<(), ClientError> {
        let path = format!("/v1/{kind}/{}", escape(name));
        let answer = self.ask(Method::DELETE, &path, &[], None);
        self.runtime.block_on(answer).map(drop)
    }

    /// Any resource.
    ///
    /// # Errors
    /// See [`Client::create`].
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        parse(
            &self
                .runtime
                .block_on(self.ask(Method::GET, path, &[], None))?,
        )
    }

    /// Writes an answer as it comes, to its end.
    ///
    /// # Errors
    /// See [`Client::create`]; `to` does not take it.
    pub fn stream(&self, path: &str, mut to: impl Write) -> Result<(), ClientError> {
        self.runtime.block_on(async {
            let response = self.send(Method::GET, path, &[], None).await?;
            let mut body = checked(response).await?.into_body();
            while let Some(frame) = body.frame().await {
                if let Ok(bytes) = frame.map_err(broken)?.into_data() {
                    let written = to.write_all(&bytes).and_then(|()| to.flush());
                    written.map_err(ClientError::Write)?;
                }
            }
            Ok(())
        })
    }

    /// A connection that leads to a sandbox's agent.
    ///
    /// # Errors
    /// See [`Client::create`].
    pub fn open_command(&self, id: &str) -> Result<UnixStream, ClientError> {
        let headers = [
            (CONNECTION.as_str(), "upgrade"),
            (UPGRADE.as_str(), PROTOCOL),
        ];
        self.runtime.block_on(async {
            let path = sandbox(id, "/exec/stream");
            let response = self.send(Method::POST, &path, &headers, None).await?;
            let status = response.status();
            if status != StatusCode::SWITCHING_PROTOCOLS {
                checked(response).await?;
                return Err(ClientError::Unexpected { status });
            }
            let upgraded = hyper::upgrade::on(response).await.map_err(broken)?;
            let parts = upgraded
                .downcast::<TokioIo<tokio::net::UnixStream>>()
                .map_err(|_| broken("the connection is not the one that was made"))?;
            // The agent speaks when it is spoken to.
            if !parts.read_buf.is_empty() {
                return Err(broken("the daemon spoke before it was asked"));
            }
            let stream = parts.io.into_inner().into_std().map_err(broken)?;
            stream.set_nonblocking(false).map_err(broken)?;
            Ok(stream)
        })
    }

    /// The whole answer to a request that was carried out.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Vec<u8>>,
    ) -> Result<Bytes, ClientError> {
        let response = self.send(method, path, headers, body).await?;
        whole(checked(response).await?).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Vec<u8>>,
    ) -> Result<Response<Incoming>, ClientError> {
        let stream = tokio::net::UnixStream::connect(&self.socket).await;
        let stream = stream.map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied => ClientError::Denied(self.socket.clone()),
            _ => ClientError::NoDaemon {
                socket: self.socket.clone(),
                source,
            },
        })?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.map_err(broken)?;
        // Ends with the answer, or with the connection it was upgraded to.
        tokio::spawn(connection.with_upgrades());
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "rundlet");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let body = Full::new(Bytes::from(body.unwrap_or_default()));
        let request = request.body(body).map_err(broken)?;
        sender.send_request(request).await.map_err(broken)
    }
}

/// Path of a sandbox and what is below it.
fn sandbox(id: &str, rest: &str) -> String {
    format!("/v1/sandboxes/{}{rest}", escape(id))
}

/// Percent-encodes all that may mean something in a URL.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

fn json(wish: &impl Serialize) -> Result<Option<Vec<u8>>, ClientError> {
    serde_json::to_vec(wish)
        .map(Some)
        .map_err(ClientError::Answer)
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(bytes).map_err(ClientError::Answer)
}

async fn whole(response: Response<Incoming>) -> Result<Bytes, ClientError> {
    let body = Limited::new(response.into_body(), MAX_ANSWER);
    Ok(body
        .collect()
        .await
        .map_err(ClientError::Broken)?
        .to_bytes())
}

/// An answer that is none of a refusal.
async fn checked(response: Response<Incoming>) -> Result<Response<Incoming>, ClientError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = whole(response).await?;
    match serde_json::from_slice(&body) {
        Ok(problem) => Err(ClientError::Refused(problem)),
        Err(_) => Err(ClientError::Unexpected { status }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_a_url() {
        assert_eq!(escape("a/b:1 é"), "a%2Fb%3A1%20%C3%A9");
        assert_eq!(sandbox("../x", "/kill"), "/v1/sandboxes/..%2Fx/kill");
    }

    #[test]
    fn a_missing_daemon_is_said_with_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let client = Client::new(&directory.path().join("api.sock")).unwrap();
        let error = client.health().unwrap_err();
        assert!(matches!(error, ClientError::NoDaemon { .. }), "{error:?}");
        let words = error.to_string();
        assert!(
            words.contains("rundlet serve") && words.contains(SOCKET),
            "{words}"
        );
    }

    #[test]
    fn a_refusal_names_its_field_once() {
        let problem = Problem::new("invalid", "at most 32").about("labels");
        assert_eq!(words(&problem), "labels: at most 32");
        let problem = Problem::new("invalid", "labels: at most 32").about("labels");
        assert_eq!(words(&problem), "labels: at most 32");
    }
}
