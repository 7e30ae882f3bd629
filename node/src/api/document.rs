//! The OpenAPI document, made of the handlers.

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use utoipa::openapi::path::Operation;
use utoipa::openapi::{ContentBuilder, InfoBuilder, LicenseBuilder, OpenApi, Ref, ResponseBuilder};
use utoipa::{PartialSchema, ToSchema};

use super::problem::{MEDIA_TYPE, Problem};

/// What the API is, for its readers.
const ABOUT: &str = "Sandboxes of a worker host: each a microVM of its own. On a unix socket; whoever may open the socket \
     may do everything. Errors are problem details (RFC 9457) with a `type` that stays the same.";

/// The document of this build.
#[must_use]
pub fn document() -> OpenApi {
    let mut document = super::routes().into_openapi();
    document.info = InfoBuilder::new()
        .title("Rundlet")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(ABOUT))
        .license(Some(
            LicenseBuilder::new()
                .name("Apache-2.0")
                .identifier(Some("Apache-2.0"))
                .build(),
        ))
        .build();
    let components = document.components.get_or_insert_default();
    components
        .schemas
        .insert(Problem::name().into(), Problem::schema());
    for item in document.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.post, &mut item.delete];
        operations.into_iter().flatten().for_each(add_problem);
    }
    document
}

/// Every operation can be refused, in the same form.
fn add_problem(operation: &mut Operation) {
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name(Problem::name())))
        .build();
    let response = ResponseBuilder::new()
        .description("It was not done")
        .content(MEDIA_TYPE, content)
        .build();
    operation
        .responses
        .responses
        .insert("default".into(), response.into());
}

/// This document.
#[utoipa::path(
    get, path = "/openapi.json", tag = "daemon", operation_id = "openapi",
    responses((status = 200, content_type = "application/json", body = serde_json::Value, description = "OpenAPI 3.1"))
)]
pub(super) async fn serve() -> Response {
    let mut response = serde_json::to_vec(&document())
        .unwrap_or_default()
        .into_response();
    let value = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    response
}
