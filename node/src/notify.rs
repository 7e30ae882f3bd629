//! Words to systemd, sd_notify(3): a service of `Type=notify` says when it is ready.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Names the socket that systemd listens on.
const SOCKET: &str = "NOTIFY_SOCKET";

/// It serves from now on.
pub const READY: &str = "READY=1";
/// It was told to end and does so.
pub const STOPPING: &str = "STOPPING=1";

/// Tells whoever supervises us; whether there is somebody. Several words are lines of one text.
///
/// # Errors
/// There is, and it cannot be told.
pub fn notify(words: &str) -> io::Result<bool> {
    match env::var_os(SOCKET).filter(|name| !name.is_empty()) {
        Some(name) => send(&name, words).map(|()| true),
        None => Ok(false),
    }
}

fn send(name: &OsStr, words: &str) -> io::Result<()> {
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(OsString::from(name))?,
    };
    UnixDatagram::unbound()?.send_to_addr(words.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_arrive_at_a_path_and_at_an_abstract_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let abstract_name = format!("rundlet-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&abstract_name).unwrap();
        for (listener, name) in [
            (UnixDatagram::bind(&path).unwrap(), path.into_os_string()),
            (
                UnixDatagram::bind_addr(&address).unwrap(),
                format!("@{abstract_name}").into(),
            ),
        ] {
            send(&name, "READY=1\nSTATUS=fine").unwrap();
            let mut bytes = [0; 64];
            let length = listener.recv(&mut bytes).unwrap();
            assert_eq!(&bytes[..length], b"READY=1\nSTATUS=fine");
        }
        assert!(send(OsStr::new("/nowhere/at/all"), "READY=1").is_err());
    }
}
