//! The double of the block backend: sockets that take connections, and files that have to be there.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::{Anything, Trouble, path, say, wait_for_the_end};

pub(crate) fn serve(config: &Value) -> Anything {
    if Trouble::wanted() == Trouble::BackendRefuses {
        return Err("listeners[0].disk.image.path: double says no".into());
    }
    let mut sockets = Vec::new();
    let mut keep = None;
    for listener in config["listeners"].as_array().ok_or("no listeners")? {
        let disk = &listener["disk"];
        let file = path(
            disk.pointer("/image/path")
                .or_else(|| disk.pointer("/scratch/template"))
                .ok_or("no disk")?,
        )?;
        File::open(&file)?;
        if let Some(path) = disk.pointer("/scratch/keep") {
            keep = Some((file, PathBuf::from(path.as_str().ok_or("no path")?)));
        }
        let socket = path(&listener["socket"])?;
        sockets.push((UnixListener::bind(&socket)?, socket));
    }
    if let Some(socket) = config["figures"].as_str() {
        let listener = UnixListener::bind(socket)?;
        thread::spawn(move || tell_figures(&listener));
    }
    say(&serde_json::json!({"event": "listening"}));
    if Trouble::wanted() == Trouble::BackendLost {
        // As long as the guest takes to come up; the VMM's double leaves a mark then.
        let mark = sockets[0].1.with_file_name("ready-mark");
        while !mark.exists() {
            thread::sleep(Duration::from_millis(10));
        }
        return Err("double: disk caught fire".into());
    }
    if keep.is_none() {
        for (listener, _) in &sockets {
            let listener = listener.try_clone()?;
            thread::spawn(move || hold_sessions(&listener));
        }
    }
    if let Some((layer, path)) = keep {
        // A session ends with the VMM, and its connection with it.
        let (mut session, _) = sockets.last().ok_or("no listener")?.0.accept()?;
        thread::spawn(move || {
            let _ = session.read_to_end(&mut Vec::new());
            let event = match fs::copy(&layer, &path) {
                Ok(_) => serde_json::json!({"event": "kept", "path": path}),
                Err(error) => {
                    serde_json::json!({"event": "not_kept", "path": path, "reason": error.to_string()})
                }
            };
            say(&event);
        });
    }
    wait_for_the_end()?;
    for (_, socket) in &sockets {
        // Gone with the run directory, perhaps.
        let _ = fs::remove_file(socket);
    }
    Ok(())
}

/// A session ends with the VMM at its other end, or with us.
fn hold_sessions(listener: &UnixListener) {
    for mut session in listener.incoming().flatten() {
        thread::spawn(move || session.read_to_end(&mut Vec::new()));
    }
}

/// Everybody who connects is told the same.
fn tell_figures(listener: &UnixListener) {
    for mut connection in listener.incoming().flatten() {
        let _ = writeln!(
            connection,
            r#"{{"sessions":1,"reads":5,"read_bytes":2560,"writes":4,"written_bytes":2048,"cache_hits":3,"cache_misses":2,"errors":1}}"#
        );
    }
}
