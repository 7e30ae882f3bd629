use std::io::Read;
use std::thread;

use serde_json::json;

use super::fixture::{Served, eventually};

const JSON: &str = "Content-Type: application/json";

#[test]
fn a_key_names_one_sandbox() {
    let served = Served::new();
    let create = |key: &str, image: &str| {
        let key = format!("Idempotency-Key: {key}");
        let body = json!({"source": {"image": image}}).to_string();
        served.ask("POST", "/v1/sandboxes", &[JSON, &key], &body)
    };
    let first = create("k1", "img");
    assert_eq!(first.status, 201);
    let id = first.json()["id"].as_str().unwrap().to_owned();
    let location = format!("/v1/sandboxes/{id}");
    assert_eq!(first.header("location"), Some(location.as_str()));
    let again = create("k1", "img");
    assert_eq!((again.status, &again.json()["id"]), (200, &json!(id)));
    let other = create("k1", "other");
    assert_eq!(
        other.problem(),
        ("key-reused".into(), "Idempotency-Key".into())
    );
    assert_eq!(create("k2", "img").status, 201);
    for key in ["a b", "", &"x".repeat(256)] {
        assert_eq!(create(key, "img").problem().1, "Idempotency-Key");
    }
    assert_eq!(served.sandboxes().len(), 2);
}

#[test]
fn a_client_that_goes_leaves_no_sandbox_that_nobody_knows() {
    let served = Served::new();
    let slow =
        json!({"source": {"image": "img"}, "labels": {"double/delay-ms": "500"}}).to_string();
    let keyed = served.send(
        "POST",
        "/v1/sandboxes",
        &[JSON, "Idempotency-Key: k"],
        &slow,
    );
    let unkeyed = served.send("POST", "/v1/sandboxes", &[JSON], &slow);
    eventually("both are begun", || served.sandboxes().len() == 2);
    drop((keyed, unkeyed));
    eventually("one is left", || served.sandboxes().len() == 1);
    eventually("it is ready", || served.sandboxes()[0]["phase"] == "ready");
    let again = served.ask(
        "POST",
        "/v1/sandboxes",
        &[JSON, "Idempotency-Key: k"],
        &slow,
    );
    assert_eq!(again.status, 200, "{again:?}");
    assert_eq!(again.json()["id"], served.sandboxes()[0]["id"]);
}

#[test]
fn starts_queue_up_and_lists_do_not_wait_for_them() {
    let served = Served::new();
    // Longer than all the asking takes.
    let slow = json!({"source": {"image": "img"}, "labels": {"double/delay-ms": "6000"}});
    let head = [JSON, "Connection: close"];
    let asked: Vec<_> = (0..100)
        .map(|_| served.send("POST", "/v1/sandboxes", &head, &slow.to_string()))
        .collect();
    // Four are worked on, 68 wait.
    let refused = r#"{method="POST",route="/v1/sandboxes",code="503"} 28"#;
    eventually("the others are refused", || {
        served.get("/metrics").body.contains(refused)
    });
    // None of the rest can be ready yet: the list was answered beside them.
    let all = served.sandboxes();
    assert_eq!(all.len(), 4, "{all:?}");
    assert!(all.iter().all(|it| it["phase"] == "creating"), "{all:?}");
    let mut told = 0;
    for mut stream in asked {
        stream.set_nonblocking(true).unwrap();
        let mut bytes = [0; 1024];
        // Who waits goes, and gives its place up.
        let Ok(count) = stream.read(&mut bytes) else {
            continue;
        };
        let text = String::from_utf8_lossy(&bytes[..count]).into_owned();
        assert!(
            text.contains(" 503 ") && text.contains("/problems/full"),
            "{text}"
        );
        assert!(text.contains("retry-after: 1\r\n"), "{text}");
        told += 1;
    }
    assert_eq!(told, 28);
    eventually("nothing is left", || served.sandboxes().is_empty());
}

#[test]
fn a_slow_client_is_in_nobody_s_way() {
    let served = Served::new();
    let idle: Vec<_> = (0..50).map(|_| served.connect()).collect();
    let asked = thread::scope(|scope| {
        let all: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| served.create(&json!({}))))
            .collect();
        all.into_iter()
            .map(|it| it.join().unwrap())
            .collect::<Vec<_>>()
    });
    assert_eq!((asked.len(), served.sandboxes().len()), (8, 8));
    drop(idle);
}
