//! The listening socket: made here, in place of one that a dead daemon has left, or inherited from systemd.

use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use listenfd::ListenFd;
use rustix::process::Gid;

use super::ServeError;
use crate::host::config::SocketConfig;

/// A socket that clients can connect to already; they wait until they are served.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    place: Place,
    /// For figures, if systemd has passed one on: it was made in the host's network, whatever this process sees of it.
    metrics: Option<TcpListener>,
}

/// What systemd has passed on, told apart by what they are.
#[derive(Debug, Default)]
struct Passed {
    api: Option<UnixListener>,
    metrics: Option<TcpListener>,
}

impl Passed {
    fn take(from: &mut ListenFd) -> Result<Self, ServeError> {
        let mut passed = Self::default();
        for index in 0..from.len() {
            // One that is of another kind stays where it is.
            if let Ok(Some(socket)) = from.take_unix_listener(index) {
                if passed.api.replace(socket).is_some() {
                    return Err(ServeError::Activation("two unix sockets"));
                }
            } else if let Ok(Some(socket)) = from.take_tcp_listener(index) {
                if passed.metrics.replace(socket).is_some() {
                    return Err(ServeError::Activation("two TCP sockets"));
                }
            } else {
                return Err(ServeError::Activation("something else"));
            }
        }
        Ok(passed)
    }
}

/// Where it is, if it is ours to remove.
#[derive(Debug)]
pub(super) struct Place(Option<(PathBuf, u64)>);

impl Drop for Place {
    fn drop(&mut self) {
        // Another daemon may have put its own there meanwhile.
        if let Some((path, inode)) = &self.0
            && fs::symlink_metadata(path).is_ok_and(|it| it.ino() == *inode)
            && let Err(error) = fs::remove_file(path)
        {
            log::warn!("cannot remove {}: {error}", path.display());
        }
    }
}

impl Listener {
    /// Takes the socket that systemd has passed on, or makes the one that was configured.
    ///
    /// # Errors
    /// A living daemon has it, or it cannot be made.
    pub fn open(config: &SocketConfig) -> Result<Self, ServeError> {
        let passed = Passed::take(&mut ListenFd::from_env())?;
        let mut listener = match passed.api {
            None => Self::bind(config)?,
            Some(socket) => Self {
                socket,
                place: Place(None),
                metrics: None,
            },
        };
        listener.metrics = passed.metrics;
        Ok(listener)
    }

    fn bind(config: &SocketConfig) -> Result<Self, ServeError> {
        let path = &config.path;
        let at = |action| {
            move |source| ServeError::Socket {
                action,
                path: path.clone(),
                source,
            }
        };
        refuse_living(path)?;
        if let Some(parent) = path.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(parent)
                .map_err(at("make the directory of"))?;
        }
        // Made beside its place and moved there, so that it is never there with other rights.
        let mut name = path.clone().into_os_string();
        name.push(format!(".{}", std::process::id()));
        let staged = PathBuf::from(name);
        let _ = fs::remove_file(&staged);
        let socket = UnixListener::bind(&staged).map_err(at("bind"))?;
        let result = prepare(&staged, config, path);
        let result = result.and_then(|inode| {
            fs::rename(&staged, path).map_err(at("move the socket to"))?;
            Ok(inode)
        });
        if result.is_err() {
            let _ = fs::remove_file(&staged);
        }
        Ok(Self {
            socket,
            place: Place(Some((path.clone(), result?))),
            metrics: None,
        })
    }

    /// The passed socket for figures, once.
    pub(super) fn take_metrics(&mut self) -> Option<TcpListener> {
        self.metrics.take()
    }

    /// For the runtime that this is called in.
    pub(super) fn into_tokio(self) -> Result<(tokio::net::UnixListener, Place), ServeError> {
        let socket = self
            .socket
            .set_nonblocking(true)
            .and_then(|()| tokio::net::UnixListener::from_std(self.socket));
        Ok((socket.map_err(ServeError::Runtime)?, self.place))
    }
}

/// Owner and rights; the inode.
fn prepare(staged: &Path, config: &SocketConfig, path: &Path) -> Result<u64, ServeError> {
    let at = |action| {
        move |source| ServeError::Socket {
            action,
            path: path.to_path_buf(),
            source,
        }
    };
    if let Some(name) = &config.group {
        let group = group(name)?;
        rustix::fs::chown(staged, None, Some(group))
            .map_err(|error| at("give to socket.group the socket")(error.into()))?;
    }
    fs::set_permissions(staged, fs::Permissions::from_mode(config.mode))
        .map_err(at("set the mode of"))?;
    let metadata = fs::symlink_metadata(staged).map_err(at("look at"))?;
    Ok(metadata.ino())
}

/// What a dead daemon has left is replaced; nothing else is.
fn refuse_living(path: &Path) -> Result<(), ServeError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            return Err(ServeError::Socket {
                action: "look at",
                path: path.to_path_buf(),
                source,
            });
        }
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ServeError::Other(path.to_path_buf()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::ConnectionRefused | ErrorKind::NotFound
            ) =>
        {
            Ok(())
        }
        Ok(_) => Err(ServeError::Living(path.to_path_buf())),
        Err(source) => Err(ServeError::Socket {
            action: "find out who has",
            path: path.to_path_buf(),
            source,
        }),
    }
}

/// A group by number or by its name in /etc/group (group(5)).
fn group(name: &str) -> Result<Gid, ServeError> {
    let unknown = || ServeError::Group(name.into());
    let number = match name.parse() {
        Ok(number) => number,
        Err(_) => {
            let groups = fs::read_to_string("/etc/group").map_err(|_| unknown())?;
            let mut fields = groups.lines().map(|line| line.split(':'));
            let mut found = fields
                .find_map(|mut it| (it.next() == Some(name)).then_some(it))
                .ok_or_else(unknown)?;
            let number = found.nth(1).and_then(|number| number.parse().ok());
            number.ok_or_else(unknown)?
        }
    };
    // chown(2) takes the largest number for "leave it".
    if number == u32::MAX {
        return Err(unknown());
    }
    Ok(Gid::from_raw(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(path: &Path) -> SocketConfig {
        SocketConfig {
            path: path.to_path_buf(),
            mode: 0o620,
            group: None,
        }
    }

    #[test]
    fn a_dead_daemon_s_socket_is_replaced_and_a_living_one_s_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/api.sock");
        let first = Listener::bind(&config(&path)).unwrap();
        let mode = fs::symlink_metadata(&path).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o620);
        assert!(matches!(
            Listener::bind(&config(&path)),
            Err(ServeError::Living(_))
        ));
        // As after a kill: the file stays, nobody listens.
        let Listener { socket, place, .. } = first;
        drop(socket);
        assert!(path.exists());
        let second = Listener::bind(&config(&path)).unwrap();
        drop(place);
        assert!(path.exists(), "the first one's end is not the second one's");
        UnixStream::connect(&path).unwrap();
        drop(second);
        assert!(!path.exists());
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_no_socket_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "mine").unwrap();
        let error = Listener::bind(&config(&path)).unwrap_err();
        assert!(matches!(error, ServeError::Other(_)), "{error:?}");
        assert_eq!(fs::read(&path).unwrap(), b"mine");
    }

    #[test]
    fn groups_have_names_and_numbers() {
        assert_eq!(group("root").unwrap().as_raw(), 0);
        assert_eq!(group("12345").unwrap().as_raw(), 12345);
        assert!(group("no-group-of-that-name").is_err());
        assert!(group("4294967295").is_err());
    }
}
