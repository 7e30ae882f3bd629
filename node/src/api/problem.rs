//! What goes wrong, as RFC 9457 has it: `application/problem+json` with a stable `type`, the field where there is
//! one, and a sentence.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use rundlet_protocol::FailureKind;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::node::HostError;
use crate::agent::AgentError;
use crate::error::chain;
use crate::image::StoreError;
use crate::image::import::ImportError;
use crate::run::{Cause, RunError};
use crate::template::TemplateError;

/// Media type of the answer.
pub(crate) const MEDIA_TYPE: &str = "application/problem+json";

/// When to ask again after a refusal that will pass, seconds.
const RETRY_AFTER: &str = "1";

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// Which kind of problem this is: a reference that stays the same, `/problems/not-found` for example.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind in words.
    pub title: String,
    /// The status code of the answer.
    pub status: u16,
    /// What went wrong this time.
    pub detail: String,
    /// The field, query parameter or header that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

/// The kinds there are: slug, status, title.
const KINDS: [(&str, StatusCode, &str); 20] = [
    (
        "malformed",
        StatusCode::BAD_REQUEST,
        "The request cannot be read",
    ),
    ("not-found", StatusCode::NOT_FOUND, "There is no such thing"),
    (
        "no-route",
        StatusCode::NOT_FOUND,
        "The API has no such path",
    ),
    (
        "no-method",
        StatusCode::METHOD_NOT_ALLOWED,
        "The path does not have this method",
    ),
    (
        "wrong-phase",
        StatusCode::CONFLICT,
        "The sandbox is not in the phase for this",
    ),
    ("ended", StatusCode::CONFLICT, "The sandbox has ended"),
    ("in-use", StatusCode::CONFLICT, "It is in use"),
    (
        "too-large",
        StatusCode::PAYLOAD_TOO_LARGE,
        "The body is too large",
    ),
    (
        "media-type",
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "The body has to be JSON",
    ),
    (
        "invalid",
        StatusCode::UNPROCESSABLE_ENTITY,
        "A field holds what it must not",
    ),
    (
        "key-reused",
        StatusCode::UNPROCESSABLE_ENTITY,
        "The idempotency key was used for another wish",
    ),
    (
        "command-failed",
        StatusCode::UNPROCESSABLE_ENTITY,
        "The command cannot be run",
    ),
    (
        "upgrade",
        StatusCode::UPGRADE_REQUIRED,
        "The connection has to be upgraded",
    ),
    (
        "start-failed",
        StatusCode::INTERNAL_SERVER_ERROR,
        "The sandbox did not start",
    ),
    (
        "internal",
        StatusCode::INTERNAL_SERVER_ERROR,
        "The node failed",
    ),
    (
        "agent",
        StatusCode::BAD_GATEWAY,
        "The guest does not answer as it should",
    ),
    (
        "full",
        StatusCode::SERVICE_UNAVAILABLE,
        "The node has no room",
    ),
    (
        "late",
        StatusCode::SERVICE_UNAVAILABLE,
        "The node was not able to in time",
    ),
    (
        "closing",
        StatusCode::SERVICE_UNAVAILABLE,
        "The daemon is ending",
    ),
    (
        "timeout",
        StatusCode::GATEWAY_TIMEOUT,
        "The command was not done in time",
    ),
];

/// Those that may pass if the same is asked again.
const PASSING: [&str; 3] = ["full", "late", "closing"];

impl Problem {
    /// `slug` is one of [`KINDS`].
    pub(crate) fn new(slug: &str, detail: impl Into<String>) -> Self {
        let kind = KINDS.iter().find(|(name, ..)| *name == slug);
        let (status, title) = kind.map_or(
            (StatusCode::INTERNAL_SERVER_ERROR, "The node failed"),
            |(_, status, title)| (*status, *title),
        );
        Self {
            kind: format!("/problems/{slug}"),
            title: title.into(),
            status: status.as_u16(),
            detail: detail.into(),
            field: None,
        }
    }

    pub(crate) fn about(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into()).filter(|field| !field.is_empty());
        self
    }

    pub(crate) fn invalid(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new("invalid", detail).about(field)
    }

    /// A failure of ours, which is also for the log.
    pub(crate) fn internal(detail: impl Into<String>) -> Self {
        let detail = detail.into();
        log::error!("{detail}");
        Self::new("internal", detail)
    }

    /// The last part of `type`.
    #[must_use]
    pub fn slug(&self) -> &str {
        self.kind.rsplit('/').next().unwrap_or_default()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status);
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let passing = PASSING.contains(&self.slug());
        let mut response =
            (status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        if passing {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
        }
        response
    }
}

impl From<HostError> for Problem {
    fn from(error: HostError) -> Self {
        let words = chain(&error);
        match error {
            HostError::Invalid { field, message } => Self::invalid(field, message),
            HostError::NotFound { .. } => Self::new("not-found", words),
            HostError::WrongPhase { .. } => Self::new("wrong-phase", words),
            HostError::KeyReused { .. } => Self::new("key-reused", words).about("Idempotency-Key"),
            HostError::Full { .. } => Self::new("full", words),
            HostError::Late { .. } => Self::new("late", words),
            HostError::Start { .. } => Self::new("start-failed", words),
            HostError::Ended { .. } => Self::new("ended", words),
            HostError::Agent(AgentError::Failed(failure)) => match failure.kind {
                FailureKind::NotFound | FailureKind::NotExecutable => {
                    Self::new("command-failed", failure.message).about("argv")
                }
                FailureKind::Invalid => Self::new("command-failed", failure.message),
                _ => Self::new("agent", failure.message),
            },
            HostError::Agent(_) => Self::new("agent", words),
            HostError::Io(_) => Self::internal(words),
            HostError::Closing => Self::new("closing", words),
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let words = chain(&error);
        match error {
            StoreError::NoSuchImage(_) | StoreError::Gone { .. } => Self::new("not-found", words),
            StoreError::InUse { .. } | StoreError::Needed { .. } => Self::new("in-use", words),
            StoreError::Path(_) | StoreError::Damaged { .. } => Self::internal(words),
        }
    }
}

impl From<ImportError> for Problem {
    fn from(error: ImportError) -> Self {
        match error {
            ImportError::Store(error) => error.into(),
            // What was named cannot be imported; what cannot be written is among them, and the sentence says it.
            error => Self::invalid("path", chain(&error)),
        }
    }
}

impl From<TemplateError> for Problem {
    fn from(error: TemplateError) -> Self {
        let words = chain(&error);
        match error {
            TemplateError::Store(error) => error.into(),
            TemplateError::NoSuchTemplate(_) => Self::new("not-found", words),
            TemplateError::InUse { .. } => Self::new("in-use", words),
            _ => Self::internal(words),
        }
    }
}

impl From<RunError> for Problem {
    fn from(error: RunError) -> Self {
        let mut words = chain(&error);
        match error.cause {
            Cause::Store(error) => error.into(),
            Cause::Template(error) => error.into(),
            Cause::WarmUp { .. } | Cause::WarmUpTimeout(_) | Cause::Command(_) => {
                for line in &error.evidence.warm_up {
                    words.push_str("\n| ");
                    words.push_str(line);
                }
                Self::new("command-failed", words).about("warm_up")
            }
            Cause::Spec(_) => Self::new("invalid", words),
            _ => {
                for line in &error.evidence.console {
                    words.push_str("\n| ");
                    words.push_str(line);
                }
                Self::new("start-failed", words)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_name_of_its_own() {
        let mut names: Vec<_> = KINDS.iter().map(|(name, ..)| name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), KINDS.len());
        for name in PASSING {
            assert_eq!(Problem::new(name, "").status, 503);
        }
    }

    #[test]
    fn a_program_that_is_not_there_is_not_the_node_s_fault() {
        let failure = rundlet_protocol::Failure {
            kind: FailureKind::NotFound,
            message: "no such program: x".into(),
        };
        let problem = Problem::from(HostError::Agent(AgentError::Failed(failure)));
        assert_eq!((problem.status, problem.slug()), (422, "command-failed"));
        assert_eq!(problem.field.as_deref(), Some("argv"));
    }
}
