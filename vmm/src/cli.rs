//! The command line.

use std::path::PathBuf;

use argh::FromArgs;

/// Rundlet's microVM monitor: one process, one sandbox.
#[derive(Debug, FromArgs)]
pub struct Cli {
    #[argh(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, FromArgs)]
#[argh(subcommand)]
pub enum Command {
    Boot(Boot),
    Clone(Clone),
    Zygote(Zygote),
}

/// Boot a sandbox and run it to its end. Exit status: 0 powered off or stopped, 1 host error, 2 bad
/// spec or usage, 10 restart, 11 guest panic, 12 guest crash, 13 a disk's backend was lost.
#[derive(Debug, FromArgs)]
#[argh(subcommand, name = "boot")]
pub struct Boot {
    /// the sandbox's spec, a JSON file, or - for standard input
    #[argh(option)]
    pub spec: PathBuf,
    /// number of an inherited pipe's read end; the sandbox ends when the other end is closed
    #[argh(option)]
    pub lifeline: Option<i32>,
    /// path of a unix socket to make, for pause, resume, status, capture and stop
    #[argh(option)]
    pub control: Option<PathBuf>,
}

/// Make one clone of a template and run it to its end. Exit status as of boot, and: 3 the template does
/// not fit this host, this program or the spec's binding, 4 the template is damaged.
#[derive(Debug, FromArgs)]
#[argh(subcommand, name = "clone")]
pub struct Clone {
    /// the template's directory
    #[argh(option)]
    pub template: PathBuf,
    /// the clone's spec, a JSON file, or - for standard input
    #[argh(option)]
    pub spec: PathBuf,
    /// number of an inherited pipe's read end; the clone ends when the other end is closed
    #[argh(option)]
    pub lifeline: Option<i32>,
    /// path of a unix socket to make, for pause, resume, status, touched and stop
    #[argh(option)]
    pub control: Option<PathBuf>,
}

/// Make clones of a template, or, without one, boot sandboxes, when asked to. Exit status: 0 the socket was
/// closed, 1 host error, 2 bad usage, 3 and 4 as of clone. What it made exits as clone or boot does.
#[derive(Debug, FromArgs)]
#[argh(subcommand, name = "zygote")]
pub struct Zygote {
    /// the template's directory
    #[argh(option)]
    pub template: Option<PathBuf>,
    /// number of an inherited unix socket of type seqpacket, for requests and answers
    #[argh(option)]
    pub socket: i32,
}
