//! `/v1/templates`: what clones are made of.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json as Answer;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::App;
use super::extract::{Json, Wish};
use super::images::name as image_name;
use super::problem::Problem;
use crate::run::Machine;
use crate::scratch;
use crate::template::{self, Inspection, TemplateName, Templates, build as building};

/// Seconds for the boot and for a warm-up, where nothing is said.
const BOOT_S: u64 = 60;
const WARM_UP_S: u64 = 300;
/// And at most.
const MAX_S: u64 = 3600;

/// A template of the store.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Template {
    pub name: String,
    /// Another for every build.
    pub id: String,
    /// What its image was called.
    pub image: String,
    pub image_digest: String,
    pub memory_mib: u32,
    pub vcpus: u8,
    pub scratch_mib: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<WarmUp>,
    /// Seconds since 1970.
    pub created: u64,
    /// Space that its files take on disk.
    pub allocated_bytes: u64,
    /// Processes that use it.
    pub used_by: Vec<u32>,
}

/// A command that runs before the capture.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WarmUp {
    pub argv: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// It is ready when it prints this line on its stdout, and lives on in the clones. Without it, it has to end with
    /// exit code 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_line: Option<String>,
    /// 1 to 3600; 300 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<u64>,
}

/// All templates.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct TemplateList {
    pub templates: Vec<Template>,
}

/// A template to build.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BuildTemplate {
    /// As names of images; one that is there is replaced.
    pub name: String,
    pub image: String,
    /// Memory of its clones, MiB; 256 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u32>,
    /// 1 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u8>,
    /// Size of the writable layer, MiB; 1024 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scratch_mib: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<WarmUp>,
    /// Seconds that the guest has to come up, 1 to 3600; 60 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_timeout_s: Option<u64>,
}

impl Wish for BuildTemplate {}

impl From<Inspection> for Template {
    fn from(it: Inspection) -> Self {
        let recipe = it.record.recipe;
        Self {
            name: it.record.name.to_string(),
            id: it.record.id,
            image: recipe.image.to_string(),
            image_digest: it.record.binding.image,
            memory_mib: recipe.memory_mib,
            vcpus: recipe.vcpus,
            scratch_mib: recipe.scratch_mib,
            warm_up: recipe.warm_up.map(WarmUp::from),
            created: it.record.created,
            allocated_bytes: it.allocated_bytes,
            used_by: it.used_by,
        }
    }
}

impl From<template::WarmUp> for WarmUp {
    fn from(it: template::WarmUp) -> Self {
        Self {
            argv: it.argv,
            env: it.env,
            cwd: it.workdir,
            user: it.user,
            ready_line: it.ready_line,
            timeout_s: Some(it.timeout_s),
        }
    }
}

/// Lists the templates.
#[utoipa::path(
    get, path = "/v1/templates", tag = "templates", operation_id = "list_templates",
    responses((status = 200, body = TemplateList, description = "The templates"))
)]
pub(super) async fn list(State(app): State<App>) -> Result<Answer<TemplateList>, Problem> {
    let all = app.call(|node| Templates::of(node.store()).list());
    let templates = all.await??.into_iter().map(Template::from).collect();
    Ok(Answer(TemplateList { templates }))
}

/// Boots an image, warms it up, and captures it; answers when the template is there.
#[utoipa::path(
    post, path = "/v1/templates", tag = "templates", operation_id = "build_template",
    request_body = BuildTemplate,
    responses((status = 201, body = Template, description = "It is there"))
)]
pub(super) async fn build(
    State(app): State<App>,
    Json(wish): Json<BuildTemplate>,
) -> Result<(StatusCode, Answer<Template>), Problem> {
    let request = request(wish)?;
    let built = app.long(move |node| -> Result<Inspection, Problem> {
        let record = node.build_template(&request)?;
        Ok(Templates::of(node.store()).inspect(&record.name)?)
    });
    let template = Template::from(built.await??);
    Ok((StatusCode::CREATED, Answer(template)))
}

/// Everything about a template.
#[utoipa::path(
    get, path = "/v1/templates/{name}", tag = "templates", operation_id = "inspect_template",
    params(("name" = String, Path, description = "a `/` in it is written as %2F")),
    responses((status = 200, body = Template, description = "The template"))
)]
pub(super) async fn inspect(
    State(app): State<App>,
    Path(text): Path<String>,
) -> Result<Answer<Template>, Problem> {
    let name = name(&text)?;
    let found = app.call(move |node| Templates::of(node.store()).inspect(&name));
    Ok(Answer(found.await??.into()))
}

/// Removes a template that no sandbox uses.
#[utoipa::path(
    delete, path = "/v1/templates/{name}", tag = "templates", operation_id = "remove_template",
    params(("name" = String, Path, description = "a `/` in it is written as %2F")),
    responses((status = 204, description = "It is gone"))
)]
pub(super) async fn remove(
    State(app): State<App>,
    Path(text): Path<String>,
) -> Result<StatusCode, Problem> {
    let name = name(&text)?;
    let removal = app.long(move |node| {
        node.let_go();
        Templates::of(node.store()).remove(&name)
    });
    removal.await??;
    Ok(StatusCode::NO_CONTENT)
}

fn name(text: &str) -> Result<TemplateName, Problem> {
    text.parse()
        .map_err(|error| Problem::invalid("name", format!("name: {error}")))
}

fn request(wish: BuildTemplate) -> Result<building::Request, Problem> {
    let scratch_mib = wish.scratch_mib.unwrap_or(1024);
    if !scratch::SIZES_MIB.contains(&scratch_mib) {
        let (min, max) = (scratch::SIZES_MIB.start(), scratch::SIZES_MIB.end());
        let message = format!("scratch_mib is {scratch_mib}, {min} to {max} are possible");
        return Err(Problem::invalid("scratch_mib", message));
    }
    Ok(building::Request {
        name: name(&wish.name)?,
        machine: Machine {
            image: image_name(&wish.image, "image")?,
            memory_mib: wish.memory_mib.unwrap_or(256),
            vcpus: wish.vcpus.unwrap_or(1),
            scratch_mib,
            kernel: None,
            initrd: None,
        },
        warm_up: wish.warm_up.map(warm_up).transpose()?,
        boot_timeout: Duration::from_secs(seconds("boot_timeout_s", wish.boot_timeout_s, BOOT_S)?),
    })
}

fn warm_up(wish: WarmUp) -> Result<template::WarmUp, Problem> {
    if wish.argv.is_empty() {
        return Err(Problem::invalid(
            "warm_up.argv",
            "warm_up.argv is empty: it names no program",
        ));
    }
    Ok(template::WarmUp {
        argv: wish.argv,
        env: wish.env,
        workdir: wish.cwd,
        user: wish.user,
        ready_line: wish.ready_line,
        timeout_s: seconds("warm_up.timeout_s", wish.timeout_s, WARM_UP_S)?,
    })
}

fn seconds(field: &str, wish: Option<u64>, default: u64) -> Result<u64, Problem> {
    let seconds = wish.unwrap_or(default);
    if (1..=MAX_S).contains(&seconds) {
        return Ok(seconds);
    }
    let message = format!("{field} is {seconds}, 1 to {MAX_S} are possible");
    Err(Problem::invalid(field, message))
}
