//! `/v1/events`: what happens, one line of JSON each, for as long as the client listens.

use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;

use super::App;
use super::extract::Parameters;
use super::problem::Problem;
use super::stream;
use crate::host::model::Event;

/// Media type: lines of JSON.
const MEDIA_TYPE: &str = "application/x-ndjson";

/// Streams events as lines of JSON, each an `Event`; ends when the daemon does.
///
/// Nothing is sent while nothing happens. A daemon keeps the last events: who was away asks for those after the last
/// sequence it has seen. A gap in the numbers is an event `missed`.
#[utoipa::path(
    get, path = "/v1/events", tag = "events", operation_id = "watch_events",
    params(("since" = Option<u64>, Query, description = "events after this sequence; from now on where absent")),
    responses((status = 200, content_type = "application/x-ndjson", body = Event, description = "Events, one a line"))
)]
pub(super) async fn events(
    State(app): State<App>,
    mut parameters: Parameters,
) -> Result<Response, Problem> {
    let since = parameters.one("since", "the sequence of an event")?;
    parameters.end()?;
    let mut events = app.node.watch(since);
    Ok(stream::answer(&app, MEDIA_TYPE, |sink| async move {
        while let Some(event) = events.recv().await {
            if !sink.send(line(&event)).await {
                return;
            }
        }
    }))
}

fn line(event: &Event) -> Bytes {
    let mut line = serde_json::to_vec(event).unwrap_or_default();
    line.push(b'\n');
    line.into()
}
