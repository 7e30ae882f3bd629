//! `/v1/sandboxes`: create, list, look at, end.

use std::time::Duration;

use axum::Json as Answer;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use utoipa::ToSchema;

use super::App;
use super::extract::{Json, Parameters, Wish, switch};
use super::node::{Created, Filter, HostError};
use super::problem::Problem;
use crate::host::model::{CreateSandbox, Detail, Phase, Summary, What};

/// Longest key of a create, bytes.
const MAX_KEY: usize = 255;

/// Header with the key.
const KEY: &str = "Idempotency-Key";

/// Seconds that a wait takes where nothing is said, and at most.
const WAIT_S: u64 = 60;
const MAX_WAIT_S: u64 = 3600;

/// Seconds between being asked to stop and being killed, where nothing is said and at most.
const GRACE_S: u64 = 10;
const MAX_GRACE_S: u64 = 600;

impl Wish for CreateSandbox {}

/// Some of the sandboxes.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct SandboxList {
    /// In the order they were created.
    pub sandboxes: Vec<Summary>,
}

/// How to stop.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Stop {
    /// Seconds that the guest has before it is killed, at most 600; 10 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_s: Option<u64>,
}

impl Wish for Stop {}

/// Where a sandbox is after a wait.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Waited {
    pub id: String,
    /// `stopped` or `failed`, or the phase it is in although the time is over.
    pub phase: Phase,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Creates a sandbox and answers when it is ready.
///
/// With a key that was used before for the same wish, the answer is the sandbox of that time. A client that goes away
/// finds its sandbox by the key; without one, nobody was told the sandbox's name, and it is removed.
#[utoipa::path(
    post, path = "/v1/sandboxes", tag = "sandboxes", operation_id = "create_sandbox",
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters; kept as long as the sandbox's record")),
    request_body = CreateSandbox,
    responses(
        (status = 201, body = Detail, description = "It is ready", headers(("Location" = String))),
        (status = 200, body = Detail, description = "It was there already, by the key"),
    )
)]
pub(super) async fn create(
    State(app): State<App>,
    headers: HeaderMap,
    Json(wish): Json<CreateSandbox>,
) -> Result<Response, Problem> {
    let key = key(&headers)?;
    // A client that goes away in here gives up its place in the queue, and that is all there is of it.
    let turn = app.node.admit().await?;
    let (answer, created) = oneshot::channel();
    // From here on it is done to its end, whoever listens.
    let worker = app.clone();
    let left = app.work.begin();
    tokio::task::spawn_blocking(move || {
        let keyed = key.is_some();
        let result = turn(wish, key);
        if let Err(Ok(created)) = answer.send(result)
            && created.fresh
            && !keyed
        {
            abandon(&worker, &created.detail.summary.id);
        }
        drop(left);
    });
    let created = created
        .await
        .map_err(|_| Problem::internal("the start of a sandbox broke off"))??;
    Ok(answer_created(&created))
}

fn answer_created(created: &Created) -> Response {
    let status = if created.fresh {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    let location = format!("/v1/sandboxes/{}", created.detail.summary.id);
    let mut response = (status, Answer(&created.detail)).into_response();
    if let Ok(value) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, value);
    }
    response
}

/// Nobody knows that it is there.
fn abandon(app: &App, id: &str) {
    log::info!("sandbox {id}: its client went away before it was ready, and left no key");
    if let Err(error) = app.node.remove(id, true) {
        log::warn!("sandbox {id} cannot be removed: {error}");
    }
}

fn key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let wrong = |message: String| Problem::invalid(KEY, message);
    let mut values = headers.get_all(KEY).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(wrong("the key is there twice".into()));
    }
    let visible = value.as_bytes().iter().all(u8::is_ascii_graphic);
    match value.to_str() {
        Ok(key) if visible && (1..=MAX_KEY).contains(&key.len()) => Ok(Some(key.to_owned())),
        _ => Err(wrong(format!(
            "a key has 1 to {MAX_KEY} visible ASCII characters"
        ))),
    }
}

/// Lists sandboxes, those that have ended included.
#[utoipa::path(
    get, path = "/v1/sandboxes", tag = "sandboxes", operation_id = "list_sandboxes",
    params(
        ("label" = Option<Vec<String>>, Query, description = "`name=value`; repeated: all of them"),
        ("phase" = Option<Vec<Phase>>, Query, description = "repeated: one of them"),
    ),
    responses((status = 200, body = SandboxList, description = "The sandboxes"))
)]
pub(super) async fn list(
    State(app): State<App>,
    mut parameters: Parameters,
) -> Result<Answer<SandboxList>, Problem> {
    let filter = filter(&mut parameters)?;
    parameters.end()?;
    // From memory, and so not behind calls that block.
    let sandboxes = app.node.list(&filter);
    Ok(Answer(SandboxList { sandboxes }))
}

fn filter(parameters: &mut Parameters) -> Result<Filter, Problem> {
    let mut filter = Filter::default();
    for label in parameters.all("label") {
        let (name, value) = label.split_once('=').ok_or_else(|| {
            Problem::invalid("label", format!("label: {label:?} is not name=value"))
        })?;
        filter.labels.insert(name.into(), value.into());
    }
    for phase in parameters.all("phase") {
        let name = serde_json::Value::String(phase.clone());
        let phase = serde_json::from_value(name)
            .map_err(|error| Problem::invalid("phase", format!("phase: {error}")))?;
        filter.phases.push(phase);
    }
    Ok(filter)
}

/// Everything about a sandbox.
#[utoipa::path(
    get, path = "/v1/sandboxes/{id}", tag = "sandboxes", operation_id = "inspect_sandbox",
    params(("id" = String, Path)),
    responses((status = 200, body = Detail, description = "The sandbox"))
)]
pub(super) async fn inspect(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Answer<Detail>, Problem> {
    app.short(move |node| node.inspect(&id)).await.map(Answer)
}

/// Removes the record of a sandbox that has ended, or, with `force`, a sandbox in any phase.
#[utoipa::path(
    delete, path = "/v1/sandboxes/{id}", tag = "sandboxes", operation_id = "remove_sandbox",
    params(("id" = String, Path), ("force" = Option<bool>, Query, description = "kill it if it lives")),
    responses((status = 204, description = "It is gone"))
)]
pub(super) async fn remove(
    State(app): State<App>,
    Path(id): Path<String>,
    mut parameters: Parameters,
) -> Result<StatusCode, Problem> {
    let force = switch(&mut parameters, "force")?;
    parameters.end()?;
    app.long(move |node| node.remove(&id, force)).await??;
    Ok(StatusCode::NO_CONTENT)
}

/// Asks the guest to power off, kills it after the grace, and answers when it has ended.
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/stop", tag = "sandboxes", operation_id = "stop_sandbox",
    params(("id" = String, Path)), request_body = Stop,
    responses((status = 204, description = "It has ended"))
)]
pub(super) async fn stop(
    State(app): State<App>,
    Path(id): Path<String>,
    Json(wish): Json<Stop>,
) -> Result<StatusCode, Problem> {
    let seconds = wish.grace_s.unwrap_or(GRACE_S);
    if seconds > MAX_GRACE_S {
        return Err(Problem::invalid(
            "grace_s",
            format!("grace_s is {seconds}, at most {MAX_GRACE_S} are possible"),
        ));
    }
    let grace = Duration::from_secs(seconds);
    app.long(move |node| node.stop(&id, grace)).await??;
    Ok(StatusCode::NO_CONTENT)
}

/// Kills a sandbox and answers when it has ended.
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/kill", tag = "sandboxes", operation_id = "kill_sandbox",
    params(("id" = String, Path)),
    responses((status = 204, description = "It has ended"))
)]
pub(super) async fn kill(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    app.long(move |node| node.kill(&id)).await??;
    Ok(StatusCode::NO_CONTENT)
}

/// Waits until a sandbox has ended, or the time is over.
#[utoipa::path(
    get, path = "/v1/sandboxes/{id}/wait", tag = "sandboxes", operation_id = "wait_for_sandbox",
    params(("id" = String, Path), ("timeout_s" = Option<u64>, Query, description = "seconds, at most 3600; 60 where absent")),
    responses((status = 200, body = Waited, description = "It has ended, or the time is over: see its phase"))
)]
pub(super) async fn wait(
    State(app): State<App>,
    Path(id): Path<String>,
    mut parameters: Parameters,
) -> Result<Answer<Waited>, Problem> {
    let seconds = parameters.one("timeout_s", "a number of seconds")?;
    let seconds = seconds.unwrap_or(WAIT_S);
    parameters.end()?;
    if seconds > MAX_WAIT_S {
        return Err(Problem::invalid(
            "timeout_s",
            format!("timeout_s is {seconds}, at most {MAX_WAIT_S} are possible"),
        ));
    }
    let ended = ended(&app, &id);
    tokio::select! {
        result = ended => result.map(Answer),
        () = tokio::time::sleep(Duration::from_secs(seconds)) => now(&app, &id).await.map(Answer),
        () = app.closing() => Err(HostError::Closing.into()),
    }
}

/// How a sandbox ended, once it has.
async fn ended(app: &App, id: &str) -> Result<Waited, Problem> {
    // Before its phase is asked for, so that no end is in between.
    let mut events = app.node.watch(None);
    loop {
        let waited = now(app, id).await?;
        if is_final(waited.phase) {
            return Ok(waited);
        }
        loop {
            let Some(event) = events.recv().await else {
                return Err(HostError::Closing.into());
            };
            match event.what {
                What::Sandbox {
                    id: whose,
                    to: phase,
                    reason,
                    ..
                } if whose == id && is_final(phase) => {
                    return Ok(Waited {
                        id: whose,
                        phase,
                        reason,
                    });
                }
                // It may be among them.
                What::Missed { .. } => break,
                _ => {}
            }
        }
    }
}

async fn now(app: &App, id: &str) -> Result<Waited, Problem> {
    let asked = id.to_owned();
    let detail = app.short(move |node| node.inspect(&asked)).await?;
    Ok(Waited {
        id: detail.summary.id,
        phase: detail.summary.phase,
        reason: detail.summary.reason,
    })
}

pub(super) fn is_final(phase: Phase) -> bool {
    matches!(phase, Phase::Stopped | Phase::Failed)
}
