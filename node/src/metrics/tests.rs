use std::collections::BTreeSet;

use super::*;

fn figures() -> Figures {
    Figures {
        sandboxes: vec![(Phase::Running, 3)],
        slots: Slots {
            free: 5,
            claimed: 3,
            ..Slots::default()
        },
        starts_queued: 2,
        starts: vec![("admitted".into(), 9), ("sandboxes".into(), 1)],
        memory_committed_bytes: 3 << 27,
        classes: vec![Class {
            kind: "template",
            name: "py:latest".into(),
            memory_bytes: 4096,
            cpu_us: 1_500_000,
        }],
        backends: vec![Backend {
            kind: "template",
            name: "py:latest".into(),
            figures: BackendFigures {
                reads: 7,
                read_bytes: 8192,
                cache_hits: 6,
                cache_misses: 1,
                ..BackendFigures::default()
            },
        }],
        ..Figures::default()
    }
}

fn text() -> String {
    let metrics = Metrics::new();
    metrics.start("ready", "template", Duration::from_millis(7));
    let took = Duration::from_millis(3);
    metrics.request(&Method::GET, "/v1/sandboxes".into(), 200, took);
    metrics.text(&figures()).unwrap()
}

#[test]
fn figures_are_written_with_names_help_and_units() {
    let text = text();
    for line in [
        "# TYPE rundlet_sandbox_start_seconds histogram",
        "# UNIT rundlet_sandbox_start_seconds seconds",
        r#"rundlet_sandbox_start_seconds_bucket{le="0.01",phase="ready",source="template"} 1"#,
        r#"rundlet_sandboxes{phase="running"} 3"#,
        r#"rundlet_sandboxes{phase="failed"} 0"#,
        r#"rundlet_pool_slots{state="free"} 5"#,
        r#"rundlet_starts_total{result="admitted"} 9"#,
        "rundlet_start_queue_length 2",
        "rundlet_memory_committed_bytes 402653184",
        r#"rundlet_class_cpu_seconds{kind="template",source="py:latest"} 1.5"#,
        r#"rundlet_backend_reads_total{kind="template",source="py:latest"} 7"#,
        r#"rundlet_backend_read_bytes_total{kind="template",source="py:latest"} 8192"#,
        r#"rundlet_backend_cache_hits_total{kind="template",source="py:latest"} 6"#,
        r#"rundlet_backend_cache_misses_total{kind="template",source="py:latest"} 1"#,
        r#"rundlet_backend_errors_total{kind="template",source="py:latest"} 0"#,
        r#"rundlet_http_request_seconds_count{method="GET",route="/v1/sandboxes",code="200"} 1"#,
    ] {
        assert!(
            text.lines().any(|it| it == line),
            "{line}\nis not in\n{text}"
        );
    }
    for line in text.lines().filter(|line| line.starts_with("# TYPE")) {
        let name = line.split(' ').nth(2).unwrap();
        assert!(text.contains(&format!("# HELP {name} ")), "{name}");
    }
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn a_client_cannot_invent_series() {
    let metrics = Metrics::new();
    for method in ["BREW", "SING"] {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        metrics.request(&method, "none".into(), 404, Duration::ZERO);
    }
    let text = metrics.text(&Figures::default()).unwrap();
    assert!(
        text.contains(r#"method="other",route="none",code="404"} 2"#),
        "{text}"
    );
}

/// Everything in the text that looks like one of our metrics.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|it: char| !(it.is_ascii_alphanumeric() || it == '_'));
    words
        .filter(|word| word.starts_with("rundlet_"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_dashboard_shows_only_what_there_is() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../docs/grafana-dashboard.json"
    );
    let dashboard: serde_json::Value =
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let known = names(&text());
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() > 5);
    for panel in panels {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().unwrap();
            let used = names(expression);
            assert!(!used.is_empty(), "{expression}");
            for name in used {
                assert!(known.contains(&name), "{name} of {expression}");
            }
        }
    }
}
