//! `/v1/sandboxes/{id}/exec`: a command with its output in the answer, or with its streams on the connection.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json as Answer;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use rundlet_protocol::{ExecSpec, ExitStatus};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::App;
use super::extract::{Json, Wish};
use super::node::{Finished, HostError, Line};
use super::problem::Problem;
use super::relay;

/// Name of the protocol that a connection is upgraded to: that of the agent, and its version.
pub(crate) const PROTOCOL: &str = "rundlet-agent/2";
const _: () = assert!(rundlet_protocol::VERSION == 2, "PROTOCOL names the version");

/// Seconds that a command has where nothing is said, and at most.
const LIMIT_S: u64 = 60;
const MAX_LIMIT_S: u64 = 3600;

/// A command to run to its end.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// Program and arguments. A program without a slash is looked up in `PATH`.
    pub argv: Vec<String>,
    /// Over the sandbox's own environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Working directory; `/` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// `USER[:GROUP]`, names or numbers, looked up in the image; root where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// What it reads, in base64; at most 1 MiB encoded. For more, stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin_base64: Option<String>,
    /// Seconds after which it is killed, 1 to 3600; 60 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<u64>,
    /// How its output is written into the answer.
    #[serde(default)]
    pub encoding: Encoding,
}

impl Wish for Exec {
    /// Command and stdin.
    const LIMIT: usize = 2 * 1024 * 1024;
}

/// How bytes become a string of JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// As text; bytes that are no UTF-8 are replaced by U+FFFD.
    #[default]
    Utf8,
    Base64,
}

/// How a command ended: with an exit code, or by a signal.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ExecResult {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Number of the signal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub encoding: Encoding,
    /// Whether there was more output than the 4 MiB of each stream that are kept.
    pub truncated: bool,
}

/// Runs a command to its end; its output is in the answer.
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/exec", tag = "commands", operation_id = "exec",
    params(("id" = String, Path)), request_body = Exec,
    responses((status = 200, body = ExecResult, description = "It has ended"))
)]
pub(super) async fn exec(
    State(app): State<App>,
    Path(id): Path<String>,
    Json(wish): Json<Exec>,
) -> Result<Answer<ExecResult>, Problem> {
    let encoding = wish.encoding;
    let limit = Duration::from_secs(limit(&wish)?);
    let (spec, stdin) = spec(wish)?;
    let run = app.long(move |node| node.run_command(&id, spec, stdin, limit));
    match run.await? {
        Ok(finished) => Ok(Answer(result(&finished, encoding))),
        Err(HostError::Late { message }) => Err(Problem::new("timeout", message)),
        Err(error) => Err(error.into()),
    }
}

fn limit(wish: &Exec) -> Result<u64, Problem> {
    let seconds = wish.timeout_s.unwrap_or(LIMIT_S);
    if (1..=MAX_LIMIT_S).contains(&seconds) {
        return Ok(seconds);
    }
    let message = format!("timeout_s is {seconds}, 1 to {MAX_LIMIT_S} are possible");
    Err(Problem::invalid("timeout_s", message))
}

fn spec(wish: Exec) -> Result<(ExecSpec, Vec<u8>), Problem> {
    if wish.argv.is_empty() {
        return Err(Problem::invalid(
            "argv",
            "argv is empty: it names no program",
        ));
    }
    let stdin = wish.stdin_base64.map(|text| BASE64.decode(text));
    let stdin = stdin.transpose().map_err(|error| {
        Problem::invalid(
            "stdin_base64",
            format!("stdin_base64 is not base64: {error}"),
        )
    })?;
    let spec = ExecSpec {
        argv: wish.argv,
        env: wish.env,
        cwd: wish.cwd,
        user: wish.user,
        stdin: stdin.is_some(),
        ..ExecSpec::default()
    };
    Ok((spec, stdin.unwrap_or_default()))
}

fn result(finished: &Finished, encoding: Encoding) -> ExecResult {
    let text = |bytes: &[u8]| match encoding {
        Encoding::Utf8 => String::from_utf8_lossy(bytes).into_owned(),
        Encoding::Base64 => BASE64.encode(bytes),
    };
    let (exit_code, signal) = match finished.status {
        ExitStatus::Code(code) => (Some(code), None),
        ExitStatus::Signal(signal) => (None, Some(signal)),
    };
    ExecResult {
        exit_code,
        signal,
        stdout: text(&finished.stdout),
        stderr: text(&finished.stderr),
        encoding,
        truncated: finished.truncated,
    }
}

/// Runs a command whose streams are on the connection, which becomes one to the sandbox's agent.
///
/// The request says `Connection: Upgrade` and `Upgrade: rundlet-agent/2`. After 101 both sides speak the agent's
/// protocol, in which the client is the host: its hello and one `exec` first, then frames of stdin, signals and sizes
/// of a terminal. The end of stdin is a frame; when the client closes the connection, or its sending half, the
/// command is killed.
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/exec/stream", tag = "commands", operation_id = "exec_stream",
    params(("id" = String, Path)),
    responses((status = 101, description = "The connection leads to the agent"))
)]
pub(super) async fn stream(
    State(app): State<App>,
    Path(id): Path<String>,
    mut request: Request,
) -> Result<Response, Problem> {
    let upgrade = upgrade(&mut request)?;
    let line = app.short(move |node| node.open_command(&id)).await?;
    let left = app.work.begin();
    tokio::spawn(async move {
        tokio::select! {
            () = carry(upgrade, line) => {}
            () = app.over() => {}
        }
        drop(left);
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(PROTOCOL));
    Ok(response)
}

fn upgrade(request: &mut Request) -> Result<OnUpgrade, Problem> {
    let headers = request.headers();
    let asked = has_token(headers, header::CONNECTION.as_str(), "upgrade")
        && has_token(headers, header::UPGRADE.as_str(), PROTOCOL);
    let upgrade = request.extensions_mut().remove::<OnUpgrade>();
    upgrade.filter(|_| asked).ok_or_else(|| {
        let message = format!("ask for it with Connection: Upgrade and Upgrade: {PROTOCOL}");
        Problem::new("upgrade", message).about("Upgrade")
    })
}

fn has_token(headers: &HeaderMap, name: &str, token: &str) -> bool {
    let values = headers.get_all(name).iter();
    let mut tokens = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    tokens.any(|it| it.trim().eq_ignore_ascii_case(token))
}

/// To the end of the command.
async fn carry(upgrade: OnUpgrade, line: Line) {
    let Line { stream, env, held } = line;
    let held = Held(Some(held));
    let client = match upgrade.await {
        Ok(client) => TokioIo::new(client),
        Err(error) => {
            log::debug!("a client went away before its connection was upgraded: {error}");
            return;
        }
    };
    let agent = stream
        .set_nonblocking(true)
        .and_then(|()| tokio::net::UnixStream::from_std(stream));
    match agent {
        Ok(agent) => relay::run(client, agent, env).await,
        Err(error) => log::error!("the connection to an agent cannot be used: {error}"),
    }
    drop(held);
}

/// What its end brings with it may block: the sandbox perhaps goes with its command.
struct Held(Option<Box<dyn std::any::Any + Send>>);

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(held) = self.0.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            drop(runtime.spawn_blocking(move || drop(held)));
        }
    }
}
