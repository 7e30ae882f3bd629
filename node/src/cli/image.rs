//! `rundlet image …`.

use std::path::PathBuf;

use argh::FromArgs;
use rundlet_node::image::ImageName;

/// Looks after images.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "image")]
pub(crate) struct Image {
    #[argh(subcommand)]
    pub(crate) verb: ImageVerb,
}

#[derive(FromArgs, Debug)]
#[argh(subcommand)]
pub(crate) enum ImageVerb {
    Import(Import),
    List(List),
    Remove(Remove),
}

/// Makes an image of a root directory or a tar file (plain, gzip or zstd).
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "import")]
pub(crate) struct Import {
    /// root directory or tar file
    #[argh(positional)]
    pub(crate) path: PathBuf,

    /// name of the image: lower-case letters, digits and . _ - /, then perhaps :tag
    #[argh(positional)]
    pub(crate) name: ImageName,
}

/// Lists the images.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "ls")]
pub(crate) struct List {
    /// as JSON
    #[argh(switch)]
    pub(crate) json: bool,
}

/// Removes an image, unless a sandbox uses it.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "rm")]
pub(crate) struct Remove {
    #[argh(positional)]
    pub(crate) name: ImageName,
}
