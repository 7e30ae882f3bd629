use std::collections::BTreeSet;
use std::time::Duration;

use axum::body::Body;
use axum::http::Method;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use rundlet_protocol::ExecSpec;
use utoipa::openapi::path::PathItem;

use super::node::{Filter, Finished, Later, Line, Turn, Watcher};
use super::*;
use crate::host::model::{Detail, Summary};
use crate::image::Store;
use crate::metrics::Figures;

/// A node without sandboxes.
struct Nobody(Store);

fn nothing<T>() -> Result<T, HostError> {
    Err(HostError::NotFound {
        what: "sandbox",
        name: "x".into(),
    })
}

struct Silence;

impl Watcher for Silence {
    fn recv(&mut self) -> Later<'_, Option<crate::host::model::Event>> {
        Box::pin(async { None })
    }
}

impl Node for Nobody {
    fn admit(&self) -> Later<'_, Result<Turn, HostError>> {
        Box::pin(async { Err(HostError::Closing) })
    }

    fn list(&self, _: &Filter) -> Vec<Summary> {
        Vec::new()
    }

    fn inspect(&self, _: &str) -> Result<Detail, HostError> {
        nothing()
    }

    fn open_command(&self, _: &str) -> Result<Line, HostError> {
        nothing()
    }

    fn run_command(
        &self,
        _: &str,
        _: ExecSpec,
        _: Vec<u8>,
        _: Duration,
    ) -> Result<Finished, HostError> {
        nothing()
    }

    fn stop(&self, _: &str, _: Duration) -> Result<(), HostError> {
        nothing()
    }

    fn kill(&self, _: &str) -> Result<(), HostError> {
        nothing()
    }

    fn remove(&self, _: &str, _: bool) -> Result<(), HostError> {
        nothing()
    }

    fn console(&self, _: &str) -> Result<std::path::PathBuf, HostError> {
        nothing()
    }

    fn watch(&self, _: Option<u64>) -> Box<dyn Watcher> {
        Box::new(Silence)
    }

    fn figures(&self) -> Figures {
        Figures::default()
    }

    fn store(&self) -> &Store {
        &self.0
    }

    fn let_go(&self) {}
}

fn nobody() -> (tempfile::TempDir, Router, watch::Sender<Age>) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let (age, aging) = watch::channel(Age::Serving);
    let (work, _) = Work::new();
    let app = App::new(Arc::new(Nobody(store)), Metrics::new(), aging, work);
    (directory, router(app), age)
}

const METHODS: [Method; 5] = [
    Method::GET,
    Method::POST,
    Method::PUT,
    Method::PATCH,
    Method::DELETE,
];

fn described(item: &PathItem) -> BTreeSet<String> {
    let operations = [&item.get, &item.post, &item.put, &item.patch, &item.delete];
    let pairs = METHODS.iter().zip(operations);
    pairs
        .filter(|(_, operation)| operation.is_some())
        .map(|(method, _)| method.to_string())
        .collect()
}

/// Paths as the router prints them when it is asked what it is, without the two of axum's fallback.
fn routed(router: &Router) -> BTreeSet<String> {
    let text = format!("{router:?}");
    let paths = text.split('"').filter(|it| it.starts_with('/'));
    let paths = paths.filter(|it| *it != "/" && !it.contains("__private"));
    paths.map(str::to_owned).collect()
}

#[tokio::test]
async fn the_document_has_the_routes_and_the_router_has_the_document() {
    let (_directory, router, _age) = nobody();
    let document = document();
    let paths: BTreeSet<String> = document.paths.paths.keys().cloned().collect();
    assert_eq!(routed(&router), paths);
    assert!(paths.len() >= 15, "{paths:?}");
    let service = TowerToHyperService::new(router);
    for (path, item) in &document.paths.paths {
        let described = described(item);
        let mut answered = BTreeSet::new();
        for method in METHODS {
            let uri = path.replace("{id}", "0123456789ab").replace("{name}", "x");
            let request = Request::builder().method(&method).uri(uri);
            let request = request.body(Body::empty()).unwrap();
            let response = service.call(request).await.unwrap();
            let body = http_body_util::BodyExt::collect(response.into_body());
            let body = body.await.unwrap().to_bytes();
            let text = String::from_utf8_lossy(&body);
            assert!(!text.contains("/problems/no-route"), "{method} {path}");
            if !text.contains("/problems/no-method") {
                answered.insert(method.to_string());
            }
        }
        assert_eq!(answered, described, "{path}");
    }
}

#[test]
fn every_operation_has_a_name_a_summary_and_a_form_of_refusal() {
    let document = serde_json::to_value(document()).unwrap();
    let mut names = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let name = operation["operationId"].as_str().unwrap();
            assert!(names.insert(name.to_owned()), "{name} is there twice");
            let summary = operation["summary"].as_str().unwrap_or_default();
            assert!(!summary.is_empty(), "{method} {path}");
            let refusal = &operation["responses"]["default"]["content"];
            assert!(refusal[problem::MEDIA_TYPE].is_object(), "{method} {path}");
        }
    }
    assert_eq!(document["openapi"], "3.1.0");
}
