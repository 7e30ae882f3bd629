//! Requests as they come in, checked: bodies with a limit in size and time, unknown fields refused by name; query
//! parameters that are known, each read once.

use std::str::FromStr;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use super::problem::Problem;

/// Longest body where nothing else is said: argv and environment of a command fit, as in the agent's protocol.
const MAX_BODY: usize = 1024 * 1024;

/// How long a body may be on its way.
const BODY_TIME: Duration = Duration::from_secs(30);

/// A body of JSON.
pub(super) trait Wish: DeserializeOwned {
    const LIMIT: usize = MAX_BODY;
}

/// A [`Wish`] that was read.
pub(super) struct Json<T>(pub(super) T);

impl<S: Send + Sync, T: Wish> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        if !is_json(request.headers()) {
            return Err(Problem::new(
                "media-type",
                "the body is read as application/json; say so in Content-Type",
            )
            .about("Content-Type"));
        }
        let bytes = read(request.into_body(), T::LIMIT).await?;
        parse(&bytes).map(Self)
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE);
    let value = value.and_then(|value| value.to_str().ok());
    value.is_some_and(|value| {
        let media_type = value.split(';').next().unwrap_or_default().trim();
        media_type.eq_ignore_ascii_case("application/json")
    })
}

async fn read(body: Body, limit: usize) -> Result<Bytes, Problem> {
    let body = Limited::new(body, limit).collect();
    match tokio::time::timeout(BODY_TIME, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Problem::new(
            "too-large",
            format!("the body has more than {limit} bytes"),
        )),
        Ok(Err(error)) => Err(Problem::new(
            "malformed",
            format!("the body did not come through: {error}"),
        )),
        Err(_) => Err(Problem::new(
            "malformed",
            format!(
                "the body was not complete after {} seconds",
                BODY_TIME.as_secs()
            ),
        )),
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let error = error.into_inner();
        if error.is_data() {
            // "." is the whole body.
            Problem::invalid(path.trim_start_matches('.'), error.to_string())
        } else {
            Problem::new("malformed", format!("the body is not JSON: {error}"))
        }
    })?;
    json.end()
        .map_err(|error| Problem::new("malformed", format!("the body is not JSON: {error}")))?;
    Ok(value)
}

/// Query parameters, to be taken one by one.
#[derive(Debug)]
pub(super) struct Parameters(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Parameters {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let query = Query::<Vec<(String, String)>>::from_request_parts(parts, state).await;
        query.map(|Query(pairs)| Self(pairs)).map_err(|error| {
            Problem::new("malformed", format!("the query cannot be read: {error}"))
        })
    }
}

impl Parameters {
    /// All values of a parameter that may be repeated.
    pub(super) fn all(&mut self, name: &str) -> Vec<String> {
        let pairs = std::mem::take(&mut self.0);
        let (taken, rest): (Vec<_>, Vec<_>) = pairs.into_iter().partition(|pair| pair.0 == name);
        self.0 = rest;
        taken.into_iter().map(|(_, value)| value).collect()
    }

    /// The value of a parameter that is there at most once.
    pub(super) fn one<T: FromStr>(&mut self, name: &str, what: &str) -> Result<Option<T>, Problem> {
        let mut values = self.all(name);
        if values.len() > 1 {
            return Err(Problem::invalid(name, format!("{name} is there twice")));
        }
        values
            .pop()
            .map(|value| {
                value
                    .parse()
                    .map_err(|_| Problem::invalid(name, format!("{name}: {value:?} is not {what}")))
            })
            .transpose()
    }

    /// Nothing else may be there.
    pub(super) fn end(self) -> Result<(), Problem> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => Err(Problem::invalid(
                name.clone(),
                format!("there is no query parameter {name:?} here"),
            )),
        }
    }
}

/// `true` or `false`, once.
pub(super) fn switch(parameters: &mut Parameters, name: &str) -> Result<bool, Problem> {
    Ok(parameters.one(name, "true or false")?.unwrap_or(false))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::model::CreateSandbox;

    #[test]
    fn what_is_wrong_in_a_body_is_named() {
        for (json, slug, field) in [
            (
                r#"{"source":{"image":"x"},"memory":1}"#,
                "invalid",
                "memory",
            ),
            (
                r#"{"source":{"image":"x"},"limits":{"cpus":1}}"#,
                "invalid",
                "limits.cpus",
            ),
            (
                r#"{"source":{"image":"x"},"vcpus":"two"}"#,
                "invalid",
                "vcpus",
            ),
            (
                r#"{"source":{"image":"x"},"vcpus":300}"#,
                "invalid",
                "vcpus",
            ),
            (r#"{"source":"#, "malformed", ""),
            (r#"{"source":{"image":"x"}} {}"#, "malformed", ""),
        ] {
            let problem = parse::<CreateSandbox>(json.as_bytes()).unwrap_err();
            assert_eq!(problem.slug(), slug, "{json}: {problem:?}");
            assert_eq!(problem.field.unwrap_or_default(), field, "{json}");
        }
        let problem = parse::<CreateSandbox>(b"{}").unwrap_err();
        assert!(problem.detail.contains("`source`"), "{problem:?}");
    }

    #[test]
    fn parameters_are_known_and_there_once() {
        let pairs = |pairs: &[(&str, &str)]| {
            let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
            Parameters(pairs.iter().map(own).collect())
        };
        let mut good = pairs(&[("force", "true")]);
        assert!(switch(&mut good, "force").unwrap());
        good.end().unwrap();
        let problem = pairs(&[("forze", "true")]).end().unwrap_err();
        assert_eq!(problem.field.as_deref(), Some("forze"));
        let twice = switch(&mut pairs(&[("f", "true"), ("f", "true")]), "f");
        assert!(twice.unwrap_err().detail.contains("twice"));
        let wrong = switch(&mut pairs(&[("f", "yes")]), "f").unwrap_err();
        assert!(wrong.detail.contains("true or false"), "{wrong:?}");
    }
}
