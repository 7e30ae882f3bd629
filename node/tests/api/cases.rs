use std::process::Command;

use serde_json::json;

use super::fixture::{Served, answer};
use super::schema::Document;

const JSON: &str = "Content-Type: application/json";

#[test]
fn answers_are_what_the_document_says() {
    let served = Served::new();
    let document = Document(served.get("/openapi.json").json());
    let check = |method: &str, route: &str, path: &str, body: &serde_json::Value| {
        let answer = match method {
            "get" => served.get(path),
            _ => served.post(path, body),
        };
        assert!(answer.status < 300, "{answer:?}");
        document.check(method, route, answer.status, &answer.json());
        answer.json()
    };
    let none = json!({});
    let wish = json!({"source": {"image": "img"}, "env": {"A": "1"}, "labels": {"job": "7"}});
    let made = check("post", "/v1/sandboxes", "/v1/sandboxes", &wish);
    let id = made["id"].as_str().unwrap();
    let at = |rest: &str| format!("/v1/sandboxes/{id}{rest}");
    check("get", "/v1/sandboxes", "/v1/sandboxes?label=job=7", &none);
    check("get", "/v1/sandboxes/{id}", &at(""), &none);
    check(
        "get",
        "/v1/sandboxes/{id}/wait",
        &at("/wait?timeout_s=0"),
        &none,
    );
    check("get", "/v1/health", "/v1/health", &none);
    check("get", "/v1/images", "/v1/images", &none);
    check("get", "/v1/templates", "/v1/templates", &none);
    let exec = json!({"argv": ["sh", "-c", "echo $A; cat; kill -9 $$"], "stdin_base64": "aGkK"});
    let route = "/v1/sandboxes/{id}/exec";
    let ended = check("post", route, &at("/exec"), &exec);
    assert_eq!(ended["signal"], 9);
    assert_eq!(ended["stdout"], "1\nhi\n");
    for path in [at("x"), at("x/wait"), "/v1/templates/x".into()] {
        let answer = served.get(&path);
        assert_eq!(answer.problem().0, "not-found");
        document.check("get", "/v1/sandboxes/{id}", answer.status, &answer.json());
    }
    let events = served.send("GET", "/v1/events?since=0", &["Connection: close"], "");
    let removed = served.ask("DELETE", &at("?force=true"), &[], "");
    assert_eq!((removed.status, removed.body.as_str()), (204, ""));
    served.tell(rustix::process::Signal::TERM);
    let events = answer(events);
    let schema = json!({"$ref": "#/components/schemas/Event"});
    assert!(events.body.lines().count() >= 5, "{events:?}");
    for line in events.body.lines() {
        let event = serde_json::from_str(line).unwrap();
        document.valid(&schema, &event, line).unwrap();
    }
}

#[test]
fn what_is_wrong_is_said_with_its_field() {
    let served = Served::new();
    let long = format!(r#"{{"source":{{"image":"{}"}}}}"#, "x".repeat(1 << 20));
    let id = served.create(&json!({}));
    let exec = format!("/v1/sandboxes/{id}/exec");
    let stop = format!("/v1/sandboxes/{id}/stop");
    let list = "/v1/sandboxes";
    for (method, path, head, body, status, kind, field) in [
        (
            "POST",
            list,
            JSON,
            r#"{"source":{"image":"i"},"cpus":1}"#,
            422,
            "invalid",
            "cpus",
        ),
        (
            "POST",
            list,
            JSON,
            r#"{"source":{"disk":"i"}}"#,
            422,
            "invalid",
            "source",
        ),
        ("POST", list, JSON, r#"{"source":"#, 400, "malformed", ""),
        (
            "POST",
            list,
            "X: y",
            r#"{"source":{"image":"i"}}"#,
            415,
            "media-type",
            "Content-Type",
        ),
        ("POST", list, JSON, &long, 413, "too-large", ""),
        (
            "POST",
            list,
            JSON,
            r#"{"source":{"image":"missing"}}"#,
            404,
            "not-found",
            "",
        ),
        (
            "GET",
            "/v1/sandboxes?labels=a",
            JSON,
            "",
            422,
            "invalid",
            "labels",
        ),
        (
            "GET",
            "/v1/sandboxes?label=a",
            JSON,
            "",
            422,
            "invalid",
            "label",
        ),
        (
            "GET",
            "/v1/sandboxes?phase=dead",
            JSON,
            "",
            422,
            "invalid",
            "phase",
        ),
        (
            "GET",
            "/v1/events?since=x",
            JSON,
            "",
            422,
            "invalid",
            "since",
        ),
        ("GET", "/v1/nothing", JSON, "", 404, "no-route", ""),
        ("PUT", list, JSON, "", 405, "no-method", ""),
        (
            "POST",
            &exec,
            JSON,
            r#"{"argv":[]}"#,
            422,
            "invalid",
            "argv",
        ),
        (
            "POST",
            &exec,
            JSON,
            r#"{"argv":["x"],"stdin_base64":"*"}"#,
            422,
            "invalid",
            "stdin_base64",
        ),
        (
            "POST",
            &exec,
            JSON,
            r#"{"argv":["x"],"timeout_s":0}"#,
            422,
            "invalid",
            "timeout_s",
        ),
        (
            "POST",
            &exec,
            JSON,
            r#"{"argv":["/no/such"]}"#,
            422,
            "command-failed",
            "argv",
        ),
        (
            "POST",
            &exec,
            JSON,
            r#"{"argv":["sleep","9"],"timeout_s":1}"#,
            504,
            "timeout",
            "",
        ),
        (
            "POST",
            &stop,
            JSON,
            r#"{"grace_s":9999}"#,
            422,
            "invalid",
            "grace_s",
        ),
        (
            "POST",
            "/v1/images",
            JSON,
            r#"{"name":"X","path":"/x"}"#,
            422,
            "invalid",
            "name",
        ),
        (
            "POST",
            "/v1/images",
            JSON,
            r#"{"name":"x","path":"x"}"#,
            422,
            "invalid",
            "path",
        ),
        (
            "POST",
            "/v1/images",
            JSON,
            r#"{"name":"x","path":"/no/such"}"#,
            422,
            "invalid",
            "path",
        ),
        (
            "POST",
            "/v1/templates",
            JSON,
            r#"{"name":"t","image":"i","scratch_mib":1}"#,
            422,
            "invalid",
            "scratch_mib",
        ),
        (
            "POST",
            "/v1/templates",
            JSON,
            r#"{"name":"t","image":"i"}"#,
            404,
            "not-found",
            "",
        ),
        ("DELETE", "/v1/images/a%2Fb", JSON, "", 404, "not-found", ""),
        (
            "DELETE",
            &format!("/v1/sandboxes/{id}"),
            JSON,
            "",
            409,
            "wrong-phase",
            "",
        ),
        (
            "POST",
            &format!("{exec}/stream"),
            JSON,
            "",
            426,
            "upgrade",
            "Upgrade",
        ),
    ] {
        let answer = served.ask(method, path, &[head], body);
        assert_eq!(answer.status, status, "{method} {path} {answer:?}");
        assert_eq!(
            answer.problem(),
            (kind.into(), field.into()),
            "{method} {path} {answer:?}"
        );
    }
}

#[test]
fn an_image_is_imported_listed_and_removed() {
    if Command::new("mkfs.erofs").arg("-V").output().is_err() {
        eprintln!("SKIPPED an_image_is_imported_listed_and_removed: no mkfs.erofs here");
        return;
    }
    let served = Served::new();
    let tree = served.path("tree");
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("file"), "x").unwrap();
    let wish = json!({"name": "lib/img:1", "path": tree});
    let made = served.post("/v1/images", &wish);
    assert_eq!(made.status, 201, "{made:?}");
    let document = Document(served.get("/openapi.json").json());
    document.check("post", "/v1/images", 201, &made.json());
    let list = served.get("/v1/images").json();
    assert_eq!(list["images"][0]["name"], "lib/img:1");
    document.check("get", "/v1/images", 200, &list);
    let gone = served.ask("DELETE", "/v1/images/lib%2Fimg:1", &[], "");
    assert_eq!(gone.status, 204, "{gone:?}");
    assert_eq!(served.get("/v1/images").json(), json!({"images": []}));
}

#[test]
fn figures_count_what_was_asked() {
    let served = Served::new();
    served.create(&json!({}));
    let text = served.get("/metrics");
    assert!(
        text.header("content-type")
            .unwrap()
            .starts_with("application/openmetrics-text")
    );
    let line =
        r#"rundlet_http_request_seconds_count{method="POST",route="/v1/sandboxes",code="201"} 1"#;
    assert!(text.body.contains(line), "{text:?}");
    assert!(
        text.body.contains(r#"rundlet_sandboxes{phase="ready"} 1"#),
        "{text:?}"
    );
    assert!(
        text.body
            .contains(r#"_bucket{le="+Inf",phase="ready",source="image"} 1"#)
    );
}
