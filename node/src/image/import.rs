//! `image import`: a root directory or a tar file becomes an image in the store.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};

use super::erofs::{self, ErofsError};
use super::store::{Reference, Store, StoreError};
use super::unpack::{self, UnpackError};
use super::{ImageName, archive};
use crate::claim::Claim;
use crate::error::PathError;

/// Why nothing was imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error(transparent)]
    Path(#[from] PathError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{} is neither a directory nor a tar file", .0.display())]
    Neither(PathBuf),
    #[error("{} contains the image store {}; import a directory that does not", path.display(), store.display())]
    ContainsStore { path: PathBuf, store: PathBuf },
    #[error("cannot import {}", path.display())]
    Archive { path: PathBuf, source: io::Error },
    #[error("cannot import {}", path.display())]
    Unpack { path: PathBuf, source: UnpackError },
    #[error("cannot make an image of {}", path.display())]
    Erofs { path: PathBuf, source: ErofsError },
}

/// What came out, and what could not be kept.
#[derive(Debug)]
pub struct Imported {
    pub reference: Reference,
    /// One sentence each.
    pub losses: Vec<String>,
}

/// Imports `path` under `name`. Progress goes to the terminal, if stderr is one. A crash leaves the
/// store as it was.
///
/// # Errors
/// Nothing is changed then.
pub fn import(store: &Store, path: &Path, name: &ImageName) -> Result<Imported, ImportError> {
    let source = path.canonicalize().map_err(PathError::at("find", path))?;
    let privileged = rustix::process::geteuid().is_root();
    let work = store.work("import")?;
    let mut losses = Vec::new();
    let root = if source.is_dir() {
        refuse_store_inside(store, &source)?;
        source.clone()
    } else if source.is_file() {
        unpack_archive(&source, &work, privileged, &mut losses)?
    } else {
        return Err(ImportError::Neither(source));
    };
    if !privileged {
        losses.push("not root: every file in the image belongs to root".into());
    }
    let staged = work.path().join("image.erofs");
    let spinner = spinner("making the EROFS image");
    erofs::build(&root, &staged, !privileged).map_err(|error| ImportError::Erofs {
        path: source.clone(),
        source: error,
    })?;
    spinner.finish_and_clear();
    let (digest, bytes) = seal(&staged)?;
    let created = SystemTime::now().duration_since(UNIX_EPOCH);
    let reference = Reference {
        name: name.clone(),
        digest: format!("sha256-{digest}"),
        bytes,
        created: created.unwrap_or_default().as_secs(),
        source: source.display().to_string(),
    };
    store.publish(&staged, &reference)?;
    Ok(Imported { reference, losses })
}

fn refuse_store_inside(store: &Store, path: &Path) -> Result<(), ImportError> {
    let root = store
        .root()
        .canonicalize()
        .map_err(PathError::at("find", store.root()))?;
    if root.starts_with(path) {
        return Err(ImportError::ContainsStore {
            path: path.to_path_buf(),
            store: root,
        });
    }
    Ok(())
}

fn unpack_archive(
    path: &Path,
    work: &Claim,
    privileged: bool,
    losses: &mut Vec<String>,
) -> Result<PathBuf, ImportError> {
    let root = work.path().join("root");
    fs::create_dir(&root).map_err(PathError::at("create directory", &root))?;
    let file = File::open(path).map_err(PathError::at("open", path))?;
    let length = file
        .metadata()
        .map_err(PathError::at("look at", path))?
        .len();
    let progress = bar("unpacking", length);
    let counter = progress.clone();
    let archive = archive::open(file, move |bytes| counter.inc(bytes));
    let archive = archive.map_err(|source| ImportError::Archive {
        path: path.to_path_buf(),
        source,
    })?;
    let report = unpack::unpack(archive, &root, privileged);
    let report = report.map_err(|source| ImportError::Unpack {
        path: path.to_path_buf(),
        source,
    })?;
    progress.finish_and_clear();
    if report.devices_left_out > 0 {
        losses.push(format!(
            "{} device nodes left out, which only root can make",
            report.devices_left_out
        ));
    }
    if report.attributes_left_out > 0 {
        losses.push(format!(
            "{} extended attributes left out, which only root (and not every filesystem) can set",
            report.attributes_left_out
        ));
    }
    log::info!(
        "unpacked {} entries from {}",
        report.entries,
        path.display()
    );
    Ok(root)
}

/// Makes the image read-only and durable; its digest and size.
fn seal(image: &Path) -> Result<(String, u64), PathError> {
    let mut file = File::open(image).map_err(PathError::at("open", image))?;
    let length = file
        .metadata()
        .map_err(PathError::at("look at", image))?
        .len();
    let progress = bar("digest", length);
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1024 * 1024];
    let mut bytes: u64 = 0;
    loop {
        let count = file
            .read(&mut buffer)
            .map_err(PathError::at("read", image))?;
        if count == 0 {
            break;
        }
        hash.update(buffer.get(..count).unwrap_or_default());
        bytes += count as u64;
        progress.inc(count as u64);
    }
    progress.finish_and_clear();
    let mut permissions = file
        .metadata()
        .map_err(PathError::at("look at", image))?
        .permissions();
    permissions.set_readonly(true);
    file.set_permissions(permissions)
        .and_then(|()| file.sync_all())
        .map_err(PathError::at("sync", image))?;
    let digest = hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok((digest, bytes))
}

/// Drawn on stderr when that is a terminal, and nowhere else.
fn bar(what: &'static str, length: u64) -> ProgressBar {
    let bar = ProgressBar::new(length).with_message(what);
    let style = ProgressStyle::with_template("{msg:>24} {bar:30} {bytes}/{total_bytes} {eta}");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn spinner(what: &'static str) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message(what);
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

#[cfg(test)]
mod tests;
