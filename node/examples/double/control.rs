//! The control socket of the VMM's double.

use std::error::Error;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;

use serde_json::Value;

use super::{Trouble, path};

/// Captures, or tells what was touched, for whoever asks.
pub(super) fn serve(listener: &UnixListener) {
    for stream in listener.incoming().flatten() {
        let mut line = String::new();
        let answer = match BufReader::new(&stream).read_line(&mut line) {
            Ok(_) => control(&line).unwrap_or_else(
                |error| serde_json::json!({"error": {"message": error.to_string()}}),
            ),
            Err(_) => continue,
        };
        let _ = writeln!(&stream, "{answer}");
    }
}

fn control(line: &str) -> Result<Value, Box<dyn Error>> {
    let request: Value = serde_json::from_str(line)?;
    if let Some(touched) = request.get("touched") {
        let name = match touched["by"].as_str() {
            Some("command") => "first-command",
            _ => "touched",
        };
        File::create_new(path(&touched["directory"])?.join(name))?;
        return Ok(serde_json::json!({"touched": {"pages": 2, "written": 1}}));
    }
    if Trouble::wanted() == Trouble::NoCapture {
        return Err("double: no room".into());
    }
    let directory = path(&request["capture"]["directory"])?;
    for (name, content) in [
        ("state", request["capture"]["binding"].to_string()),
        ("memory", "memory".into()),
        ("window", "window".into()),
    ] {
        File::create_new(directory.join(name))?.write_all(content.as_bytes())?;
    }
    Ok(serde_json::json!({"captured": {"memory_bytes": 6, "window_bytes": 6}}))
}
