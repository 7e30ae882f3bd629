//! Asks a backend what it has done. It serves guests, and may be theirs by now: it can lie, and it can keep silent, but
//! it cannot make anybody wait or read without an end.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde::Deserialize;

use super::super::process::readable_within;

/// An answer is there at once.
const PATIENCE: Duration = Duration::from_millis(500);

/// Longer than any answer.
const MOST: usize = 4096;

/// What a backend says of itself, since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct BackendFigures {
    pub reads: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub written_bytes: u64,
    /// Reads that the page cache answered, and those that waited for the medium, where the file system tells.
    pub cache_hits: u64,
    pub cache_misses: u64,
    /// Requests that were answered with an error.
    pub errors: u64,
}

/// Asks at its socket.
pub(crate) fn ask(path: &Path) -> io::Result<BackendFigures> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Without waiting: where its queue is full, nobody answers.
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    let mut connection = UnixStream::from(socket);
    let deadline = Instant::now() + PATIENCE;
    let mut answer = [0; MOST];
    let mut length = 0;
    loop {
        let room = answer.get_mut(length..).unwrap_or_default();
        if room.is_empty() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        match connection.read(room) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.raw_os_error() == Some(Errno::AGAIN.raw_os_error()) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() || !readable_within(&connection, left)? {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(serde_json::from_slice(
        answer.get(..length).unwrap_or_default(),
    )?)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    /// Asks somebody who says this, and then keeps the connection for `silence`.
    fn asked(says: &'static [u8], silence: Duration) -> io::Result<BackendFigures> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("figures.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let teller = thread::spawn(move || {
            let (mut connection, _) = listener.accept().unwrap();
            // Whoever asked may have had enough.
            let _ = connection.write_all(says);
            thread::sleep(silence);
        });
        let answer = ask(&path);
        teller.join().unwrap();
        answer
    }

    #[test]
    fn an_answer_is_figures_and_may_have_more_than_are_known() {
        let says = br#"{"sessions":1,"reads":7,"read_bytes":512,"writes":0,"written_bytes":0,"cache_hits":6,"cache_misses":1,"errors":2}
"#;
        let told = asked(says, Duration::ZERO).unwrap();
        assert_eq!((told.reads, told.cache_hits, told.errors), (7, 6, 2));
    }

    #[test]
    fn nobody_waits_for_a_hostile_one_or_takes_what_it_likes() {
        let none = ask(Path::new("/nonexistent/figures.sock")).unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::NotFound);
        let silent = asked(b"{", 2 * PATIENCE).unwrap_err();
        assert_eq!(silent.kind(), io::ErrorKind::TimedOut);
        assert!(asked(b"{\"reads\": -1}\n", Duration::ZERO).is_err());
        let long = asked(&[b' '; 2 * MOST], Duration::ZERO).unwrap_err();
        assert_eq!(long.kind(), io::ErrorKind::InvalidData);
    }
}
