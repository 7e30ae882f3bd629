//! What the documentation shows is what happens, and a client that somebody else's generator made can use the API.

use std::path::Path;
use std::process::Command;

use super::fixture::{RUNDLET, Served};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

#[test]
fn the_walk_with_curl_works_as_it_is_written() {
    if Command::new("curl").arg("--version").output().is_err() {
        eprintln!("SKIPPED the_walk_with_curl_works_as_it_is_written: no curl here");
        return;
    }
    let text = std::fs::read_to_string(repository().join("docs/api.md")).unwrap();
    let script: String = text
        .split("```sh\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect();
    assert!(script.contains("curl"), "{script}");
    let served = Served::new();
    let path = std::env::var("PATH").unwrap();
    let beside = Path::new(RUNDLET).parent().unwrap().display();
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", &script])
        .env("RUNDLET_SOCKET", served.socket())
        .env("PATH", format!("{beside}:{path}"))
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(words.contains(r#""exit_code":0"#), "{words}");
    assert!(words.contains("/problems/invalid"), "{words}");
    assert!(served.sandboxes().is_empty(), "it cleans up");
}
