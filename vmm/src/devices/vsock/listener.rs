//! The device's place in the host's file system: the socket that programs connect to, and the
//! names next to it that lead from guest to host.
//!
//! The socket file belongs to whoever listens on it. One left behind by a process that died is
//! replaced, one that somebody answers on is not; ours is removed when we go.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use thiserror::Error;

/// sun_path holds 108 bytes with the final zero (unix(7)).
const MAX_PATH: usize = 107;
/// `_4294967295`, appended for what the guest dials.
const MAX_SUFFIX: usize = 11;

/// Why the socket could not be had.
#[derive(Debug, Error)]
pub enum BindError {
    #[error("vsock.socket: {path:?} is longer than {} bytes; choose a shorter path", MAX_PATH - MAX_SUFFIX)]
    TooLong { path: PathBuf },
    #[error("vsock.socket: a process listens on {path:?} already; stop it or choose another path")]
    InUse { path: PathBuf },
    #[error("vsock.socket: {path:?} exists and is not a socket; remove it or choose another path")]
    NotASocket { path: PathBuf },
    #[error("vsock.socket: cannot {what} {path:?}")]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The bound socket.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode of our file: whatever else is at the path later is not ours to remove.
    identity: (u64, u64),
}

impl Listener {
    /// Listens at `path`, replacing what a dead process left there.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        let owned = || path.to_owned();
        let fail = |what| {
            move |source| BindError::Io {
                what,
                path: path.to_owned(),
                source,
            }
        };
        if path.as_os_str().len() > MAX_PATH - MAX_SUFFIX {
            return Err(BindError::TooLong { path: owned() });
        }
        let socket = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                remove_stale(path)?;
                UnixListener::bind(path)
            }
            result => result,
        }
        .map_err(fail("listen on"))?;
        socket
            .set_nonblocking(true)
            .map_err(fail("set to non-blocking"))?;
        let identity = identify(path).map_err(fail("look at"))?;
        Ok(Self {
            socket,
            path: owned(),
            identity,
        })
    }

    /// From now on `root`, which this is in, is the root of all paths.
    pub fn moved_into(&mut self, root: &Path) {
        if let Ok(below) = self.path.strip_prefix(root) {
            self.path = Path::new("/").join(below);
        }
    }

    /// The listening socket itself.
    #[must_use]
    pub fn socket(&self) -> &UnixListener {
        &self.socket
    }

    /// The next connection, not blocking in either sense.
    pub fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.socket.accept()?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }

    /// Connects to whoever serves `port` for the guest. Never waits: a listener whose backlog is
    /// full counts as absent.
    pub fn dial(&self, port: u32) -> io::Result<UnixStream> {
        let mut name = OsString::from(&self.path);
        name.push(format!("_{port}"));
        dial(Path::new(&name)).map(UnixStream::from)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if identify(&self.path).is_ok_and(|found| found == self.identity)
            && let Err(error) = fs::remove_file(&self.path)
        {
            log::warn!("vsock: cannot remove {:?}: {error}", self.path);
        }
    }
}

fn dial(path: &Path) -> io::Result<OwnedFd> {
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
        None,
    )?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Device and inode of what is at `path`.
fn identify(path: &Path) -> io::Result<(u64, u64)> {
    let found = fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

/// Removes a socket file that nobody answers on.
fn remove_stale(path: &Path) -> Result<(), BindError> {
    let owned = path.to_owned();
    let fail = |what| {
        move |source| BindError::Io {
            what,
            path: path.to_owned(),
            source,
        }
    };
    let found = fs::symlink_metadata(path).map_err(fail("look at"))?;
    if !found.file_type().is_socket() {
        return Err(BindError::NotASocket { path: owned });
    }
    match dial(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(fail("remove the stale"))
        }
        // A full backlog is somebody, too.
        Ok(_) => Err(BindError::InUse { path: owned }),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(BindError::InUse { path: owned })
        }
        Err(source) => Err(fail("ask who listens on")(source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn the_file_lives_as_long_as_the_listener() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.sock");
        let listener = Listener::bind(&path).unwrap();
        assert!(path.exists());
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_process_leaves_nothing_in_the_way() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "the standard library leaves the file");
        let listener = Listener::bind(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        listener.accept().unwrap();
    }

    #[test]
    fn a_live_process_keeps_its_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.sock");
        let _theirs = UnixListener::bind(&path).unwrap();
        let error = Listener::bind(&path).unwrap_err();
        assert!(matches!(error, BindError::InUse { .. }), "{error}");
        assert!(path.exists());
    }

    #[test]
    fn other_files_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.sock");
        fs::write(&path, "mine").unwrap();
        let error = Listener::bind(&path).unwrap_err();
        assert!(matches!(error, BindError::NotASocket { .. }), "{error}");
        fs::remove_file(&path).unwrap();
        symlink("/nowhere", &path).unwrap();
        assert!(matches!(
            Listener::bind(&path).unwrap_err(),
            BindError::NotASocket { .. }
        ));
    }

    #[test]
    fn what_replaced_our_file_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.sock");
        let listener = Listener::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _theirs = UnixListener::bind(&path).unwrap();
        drop(listener);
        assert!(path.exists());
    }

    #[test]
    fn errors_name_path_and_remedy() {
        let long = PathBuf::from(format!("/{}", "x".repeat(96)));
        assert_eq!(
            Listener::bind(&long).unwrap_err().to_string(),
            format!("vsock.socket: {long:?} is longer than 96 bytes; choose a shorter path")
        );
        let error = Listener::bind(Path::new("/nonexistent/v.sock")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "vsock.socket: cannot listen on \"/nonexistent/v.sock\""
        );
    }

    #[test]
    fn a_full_backlog_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let listener = Listener::bind(&folder.path().join("v.sock")).unwrap();
        let served = folder.path().join("v.sock_7");
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        rustix::net::bind(&socket, &SocketAddrUnix::new(&served).unwrap()).unwrap();
        rustix::net::listen(&socket, 0).unwrap();
        let first = listener.dial(7);
        assert!(first.is_ok());
        let second = listener.dial(7).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::WouldBlock);
    }
}
