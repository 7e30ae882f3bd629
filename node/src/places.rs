//! Where things are: our other programs, the guest's files, the store, the run directories. An
//! environment variable wins over what is found beside our own binary.

use std::env;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::error::PathError;
use crate::tools;

/// Names the directory with `rundlet-vmm` and `vhost-blk-ro`.
pub const LIBEXEC: &str = "RUNDLET_LIBEXEC";
/// Names the directory with `vmlinux` and `initrd.cpio`.
pub const GUEST: &str = "RUNDLET_GUEST";
/// Names the store.
pub const STORE: &str = "RUNDLET_STORE";
/// Names the directory of everything that ends with the host: run directories, and what a daemon has there.
pub const RUNTIME: &str = "RUNDLET_RUNTIME";

/// What is not where it should be.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    #[error(
        "cannot find the program {name}: it is neither beside rundlet, nor in ../libexec/rundlet, nor in PATH; set {LIBEXEC} to its directory"
    )]
    Program { name: String },
    #[error(
        "cannot find the guest's {name}; looked for {}. Build it (README) or set {GUEST} to its directory",
        list(looked)
    )]
    Guest { name: String, looked: Vec<PathBuf> },
    #[error(transparent)]
    Path(#[from] PathError),
    #[error("{} belongs to somebody else; set {RUNTIME} to a directory of yours", .0.display())]
    NotOurs(PathBuf),
}

fn list(paths: &[PathBuf]) -> String {
    let all: Vec<String> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    all.join(", ")
}

/// One of our other programs.
///
/// # Errors
/// It is nowhere.
pub fn program(name: &str) -> Result<PathBuf, PlaceError> {
    let told = env::var_os(LIBEXEC).map(|directory| PathBuf::from(directory).join(name));
    let beside = beside();
    // As `make install` lays it out: bin/rundlet, libexec/rundlet/….
    let above = beside.as_deref().and_then(Path::parent);
    let installed = above.map(|above| above.join("libexec/rundlet").join(name));
    let beside = beside.as_ref().map(|directory| directory.join(name));
    told.into_iter()
        .chain(beside)
        .chain(installed)
        .find(|path| tools::is_executable(path))
        .or_else(|| tools::find(name))
        .ok_or_else(|| PlaceError::Program { name: name.into() })
}

/// A file of the guest: `vmlinux` or `initrd.cpio`.
///
/// # Errors
/// It is nowhere.
pub fn guest(name: &str) -> Result<PathBuf, PlaceError> {
    let mut looked: Vec<PathBuf> = env::var_os(GUEST).map(PathBuf::from).into_iter().collect();
    if looked.is_empty()
        && let Some(above) = beside().as_deref().and_then(Path::parent)
    {
        looked = vec![above.join("share/rundlet"), above.join("guest")];
    }
    for directory in &mut looked {
        directory.push(name);
    }
    let found = looked.iter().find(|path| path.is_file()).cloned();
    found.ok_or_else(|| PlaceError::Guest {
        name: name.into(),
        looked,
    })
}

/// The image store.
#[must_use]
pub fn store() -> PathBuf {
    if let Some(told) = env::var_os(STORE) {
        return told.into();
    }
    if rustix::process::geteuid().is_root() {
        return "/var/lib/rundlet".into();
    }
    // XDG base directory specification.
    let data = env::var_os("XDG_DATA_HOME").filter(|path| !path.is_empty());
    let data = data.map_or_else(
        || {
            let home = env::var_os("HOME").unwrap_or_else(|| "/".into());
            PathBuf::from(home).join(".local/share")
        },
        PathBuf::from,
    );
    data.join("rundlet")
}

/// The directory of everything that ends with the host.
#[must_use]
pub fn base() -> PathBuf {
    let uid = rustix::process::geteuid();
    match (env::var_os(RUNTIME), env::var_os("XDG_RUNTIME_DIR")) {
        (Some(told), _) => told.into(),
        (None, _) if uid.is_root() => PathBuf::from("/run/rundlet"),
        (None, Some(xdg)) => PathBuf::from(xdg).join("rundlet"),
        (None, None) => env::temp_dir().join(format!("rundlet-{}", uid.as_raw())),
    }
}

/// The directory of run directories, made when missing. Apart from a daemon's, since whatever is unlocked beside a
/// run directory is swept away ([`crate::claim`]).
///
/// # Errors
/// It cannot be made, or is not ours alone.
pub fn runtime() -> Result<PathBuf, PlaceError> {
    let base = base();
    // The daemon's socket is there, which others may be let to.
    own(&base, 0o755)?;
    let path = base.join("runs");
    own(&path, 0o700)?;
    Ok(path)
}

/// Makes a directory unless it is there, and refuses one that is somebody else's.
fn own(path: &Path, mode: u32) -> Result<(), PlaceError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(PathError::at("create directory", path))?;
    // In a shared /tmp somebody else may have been first.
    let metadata = fs::symlink_metadata(path).map_err(PathError::at("look at", path))?;
    if metadata.uid() != rustix::process::geteuid().as_raw() || !metadata.is_dir() {
        return Err(PlaceError::NotOurs(path.to_path_buf()));
    }
    Ok(())
}

fn beside() -> Option<PathBuf> {
    env::current_exe().ok()?.parent().map(Path::to_path_buf)
}
