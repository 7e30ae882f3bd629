//! `/v1/health` and `/metrics`.

use axum::Json as Answer;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::App;
use super::problem::Problem;

/// That the daemon answers, and which one it is.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok`, or `closing` once it was told to end.
    pub status: String,
    pub version: String,
    /// Process id of the daemon.
    pub pid: u32,
}

/// Whether the daemon answers.
#[utoipa::path(
    get, path = "/v1/health", tag = "daemon", operation_id = "health",
    responses((status = 200, body = Health, description = "It does"))
)]
pub(super) async fn health(State(app): State<App>) -> Answer<Health> {
    let closing = *app.age.borrow() > super::Age::Serving;
    Answer(Health {
        status: if closing { "closing" } else { "ok" }.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
    })
}

/// Figures for Prometheus, as OpenMetrics text.
#[utoipa::path(
    get, path = "/metrics", tag = "daemon", operation_id = "metrics",
    responses((status = 200, content_type = "application/openmetrics-text", body = String, description = "The figures"))
)]
pub(super) async fn metrics(State(app): State<App>) -> Result<Response, Problem> {
    let figures = app.call(|node| node.figures()).await?;
    let text = app
        .metrics
        .text(&figures)
        .map_err(|error| Problem::internal(format!("figures cannot be written: {error}")))?;
    let mut response = text.into_response();
    let value =
        HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    Ok(response)
}
