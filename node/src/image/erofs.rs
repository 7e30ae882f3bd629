//! `mkfs.erofs`: a directory into an image whose bytes depend on nothing but the directory.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::tools;

/// Filesystem UUID of every image: a random one would make equal input unequal.
const UUID: &str = "5dfb1e1b-7a3c-4b87-9a54-4b5a2a3f0e01";

/// Build time in the superblock, 2100-01-01. Files keep their own times: mkfs.erofs only lowers those
/// that are after it, <https://reproducible-builds.org/specs/source-date-epoch/>. (`-T` would set all
/// times to one, and Python would then compile every module again.)
const SOURCE_DATE_EPOCH: &str = "4102444800";

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ErofsError {
    #[error("mkfs.erofs is not installed (Debian: apt install erofs-utils)")]
    Missing,
    #[error("cannot run {}", program.display())]
    Run { program: PathBuf, source: io::Error },
    #[error("mkfs.erofs failed ({status}): {said}")]
    Failed { status: String, said: String },
}

/// Writes the image of `root` to `image`. Not compressed: pages of the file are pages of the files in
/// it, so that the host's page cache can be the only copy. `all_root` gives every file to root, for
/// importers who cannot own files of others.
///
/// # Errors
/// The tool is missing or fails.
pub fn build(root: &Path, image: &Path, all_root: bool) -> Result<(), ErofsError> {
    let program = tools::find("mkfs.erofs").ok_or(ErofsError::Missing)?;
    let mut arguments: Vec<OsString> = ["--quiet", "-U", UUID].map(Into::into).to_vec();
    if all_root {
        arguments.push("--all-root".into());
    }
    arguments.extend([image.into(), root.into()]);
    let output = Command::new(&program)
        .args(arguments)
        .env("SOURCE_DATE_EPOCH", SOURCE_DATE_EPOCH)
        .stdin(Stdio::null())
        .output()
        .map_err(|source| ErofsError::Run { program, source })?;
    if output.status.success() {
        return Ok(());
    }
    Err(ErofsError::Failed {
        status: output.status.to_string(),
        said: tools::last_lines(&output.stderr),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn equal_trees_give_equal_images_and_other_trees_others() {
        let directory = tempfile::tempdir().unwrap();
        let digest = |tree: &str, names: &[&str]| {
            let root = directory.path().join(tree);
            fs::create_dir(&root).unwrap();
            for name in names {
                fs::write(root.join(name), name.repeat(3000)).unwrap();
                let file = fs::File::open(root.join(name)).unwrap();
                file.set_modified(std::time::UNIX_EPOCH).unwrap();
            }
            let file = fs::File::open(&root).unwrap();
            file.set_modified(std::time::UNIX_EPOCH).unwrap();
            let image = directory.path().join(format!("{tree}.erofs"));
            build(&root, &image, true).unwrap();
            fs::read(image).unwrap()
        };
        let one = digest("one", &["a", "b", "c"]);
        assert!(one == digest("two", &["c", "a", "b"]));
        assert!(one != digest("three", &["c", "a", "d"]));
    }

    #[test]
    fn the_tool_s_own_words_are_in_the_error() {
        let directory = tempfile::tempdir().unwrap();
        let error = build(
            &directory.path().join("missing"),
            &directory.path().join("image"),
            false,
        )
        .unwrap_err();
        assert!(error.to_string().contains("No such file"), "{error}");
    }
}
