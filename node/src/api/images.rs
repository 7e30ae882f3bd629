//! `/v1/images`: the store's images.

use std::path::PathBuf;

use axum::Json as Answer;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::App;
use super::extract::{Json, Wish};
use super::problem::Problem;
use crate::image::{ImageName, Reference, import as importing};

/// An image of the store.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Image {
    pub name: String,
    /// `sha256-` and 64 hexadecimal digits.
    pub digest: String,
    pub bytes: u64,
    /// Seconds since 1970.
    pub created: u64,
    /// Where it was imported from.
    pub source: String,
    /// What could not be kept, one sentence each; only in the answer to an import.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub losses: Vec<String>,
}

impl From<Reference> for Image {
    fn from(reference: Reference) -> Self {
        Self {
            name: reference.name.to_string(),
            digest: reference.digest,
            bytes: reference.bytes,
            created: reference.created,
            source: reference.source,
            losses: Vec::new(),
        }
    }
}

/// All images.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ImageList {
    pub images: Vec<Image>,
}

/// An image to make.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportImage {
    /// Lower-case letters, digits and `._-/`, then perhaps `:tag`; one that is there is replaced.
    pub name: String,
    /// A root directory or tar file (plain, gzip or zstd) on the node, as an absolute path.
    #[schema(value_type = String)]
    pub path: PathBuf,
}

impl Wish for ImportImage {}

/// Lists the images.
#[utoipa::path(
    get, path = "/v1/images", tag = "images", operation_id = "list_images",
    responses((status = 200, body = ImageList, description = "The images"))
)]
pub(super) async fn list(State(app): State<App>) -> Result<Answer<ImageList>, Problem> {
    let images = app.call(|node| node.store().list()).await??;
    let images = images.into_iter().map(Image::from).collect();
    Ok(Answer(ImageList { images }))
}

/// Makes an image of a root directory or a tar file on the node; answers when it is there.
#[utoipa::path(
    post, path = "/v1/images", tag = "images", operation_id = "import_image",
    request_body = ImportImage,
    responses((status = 201, body = Image, description = "It is there"))
)]
pub(super) async fn import(
    State(app): State<App>,
    Json(wish): Json<ImportImage>,
) -> Result<(StatusCode, Answer<Image>), Problem> {
    let name = name(&wish.name, "name")?;
    if !wish.path.is_absolute() {
        return Err(Problem::invalid("path", "path: is not absolute"));
    }
    let import = app.long(move |node| importing::import(node.store(), &wish.path, &name));
    let imported = import.await??;
    let mut image = Image::from(imported.reference);
    image.losses = imported.losses;
    Ok((StatusCode::CREATED, Answer(image)))
}

/// Removes an image that no sandbox and no template needs.
#[utoipa::path(
    delete, path = "/v1/images/{name}", tag = "images", operation_id = "remove_image",
    params(("name" = String, Path, description = "a `/` in it is written as %2F")),
    responses((status = 204, description = "It is gone"))
)]
pub(super) async fn remove(
    State(app): State<App>,
    Path(text): Path<String>,
) -> Result<StatusCode, Problem> {
    let name = name(&text, "name")?;
    let removal = app.long(move |node| {
        node.let_go();
        node.store().remove(&name)
    });
    removal.await??;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) fn name(text: &str, field: &str) -> Result<ImageName, Problem> {
    text.parse()
        .map_err(|error| Problem::invalid(field, format!("{field}: {error}")))
}
