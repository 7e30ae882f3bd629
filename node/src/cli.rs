//! The command line: parsed here, once, into what the rest of the program takes.

mod bench;
mod daemon;
mod fleet;
mod image;
mod pool;
mod run;
mod serve;
mod template;
mod words;

use std::collections::BTreeMap;
use std::time::Duration;

use argh::FromArgs;
use rundlet_node::image::ImageName;
use rundlet_node::image::name::NameError;
use rundlet_node::scratch;
use rundlet_node::template::TemplateName;

pub(crate) use bench::{Bench, BenchVerb};
pub(crate) use daemon::{Create, Events, Exec, InspectSandbox, Kill, Logs, Ps, Rm, Stop};
pub(crate) use fleet::Fleet;
pub(crate) use image::{Image, ImageVerb, Import, List, Remove};
pub(crate) use pool::Pool;
pub(crate) use run::{Daemon, Run};
pub(crate) use serve::Serve;
pub(crate) use template::{
    Build, Check as TemplateCheck, Inspect, List as TemplateList, Remove as TemplateRemove,
    Template, TemplateVerb,
};
pub(crate) use words::split_switches;

/// Runs commands in throw-away microVMs.
#[derive(FromArgs, Debug)]
#[argh(
    note = "Environment: RUNDLET_STORE (image store), RUNDLET_GUEST (directory of vmlinux and initrd.cpio),\nRUNDLET_LIBEXEC (directory of rundlet-vmm and vhost-blk-ro), RUNDLET_RUNTIME (run directories),\nRUNDLET_SOCKET (the daemon's socket), RUST_LOG (info, debug: what goes on, on stderr).",
    example = "rundlet image import debian.tar.zst debian:12\nrundlet run -it debian:12 -- bash"
)]
pub(crate) struct Cli {
    /// print the version
    #[argh(switch)]
    pub(crate) version: bool,

    #[argh(subcommand)]
    pub(crate) verb: Option<Verb>,
}

#[derive(FromArgs, Debug)]
#[argh(subcommand)]
pub(crate) enum Verb {
    Run(Box<Run>),
    Create(Box<Create>),
    Exec(Exec),
    Ps(Ps),
    Inspect(InspectSandbox),
    Logs(Logs),
    Stop(Stop),
    Kill(Kill),
    Rm(Rm),
    Events(Events),
    Image(Image),
    Template(Box<Template>),
    Fleet(Fleet),
    Bench(Bench),
    Pool(Pool),
    Serve(Serve),
    Doctor(Doctor),
}

/// Says whether sandboxes can run here, and what to do if not. Exit code 1 when they cannot.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "doctor")]
pub(crate) struct Doctor {
    /// as JSON
    #[argh(switch)]
    pub(crate) json: bool,
}

/// Memory of a sandbox where nothing is said, MiB.
const MEMORY_MIB: u32 = 256;

/// Size of a writable layer where nothing is said, MiB.
const SCRATCH_MIB: u64 = 1024;

/// Why arguments that could be read are refused all the same.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UsageError {
    #[error("an image and a command are missing: rundlet run IMAGE -- CMD ARGS…")]
    Nothing,
    #[error("a command is missing: rundlet run {0} -- CMD ARGS…")]
    NoCommand(ImageName),
    #[error("a command is missing: rundlet run --template {0} -- CMD ARGS…")]
    NoClonedCommand(TemplateName),
    #[error("a clone has its template's image: rundlet run --template {0} -- CMD ARGS…")]
    TwoSources(TemplateName),
    #[error("{option} is decided by the template; leave it out, or build another template with it")]
    Templates { option: &'static str },
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("--env {0:?} is neither K=V nor K")]
    Env(String),
    #[error("--scratch-size is {0} MiB, {min} to {max} are possible", min = scratch::SIZES_MIB.start(), max = scratch::SIZES_MIB.end())]
    Scratch(u64),
    #[error("{0} is 0 seconds, at least 1 is needed")]
    Zero(&'static str),
    #[error("a command is missing: rundlet fleet --template {0} -- CMD ARGS…")]
    NoFleetCommand(TemplateName),
    #[error("--template or --cold says what to measure: rundlet bench start --template NAME")]
    NothingToBench,
    #[error("a command is missing: rundlet exec {0} -- CMD ARGS…")]
    NoExecCommand(String),
    #[error("exactly one of an image and --template NAME is needed: rundlet create debian")]
    OneSource,
    #[error("--label {0:?} is not NAME=VALUE")]
    Label(String),
    #[error("{option} cannot be done by a daemon; leave it out, or say --daemon never")]
    OursAlone { option: &'static str },
    #[error("{0} is 0, at least 1 is needed")]
    Nought(&'static str),
    #[error("{0} has a number above {1}")]
    TooMany(&'static str, u32),
    #[error(
        "{0} is about the warm-up; give that after `--`: rundlet template build IMAGE NAME -- CMD ARGS…"
    )]
    NoWarmUp(&'static str),
}

fn scratch_size(wish: Option<u64>) -> Result<u64, UsageError> {
    let mib = wish.unwrap_or(SCRATCH_MIB);
    if scratch::SIZES_MIB.contains(&mib) {
        Ok(mib)
    } else {
        Err(UsageError::Scratch(mib))
    }
}

fn seconds(name: &'static str, seconds: u64) -> Result<Duration, UsageError> {
    match seconds {
        0 => Err(UsageError::Zero(name)),
        seconds => Ok(Duration::from_secs(seconds)),
    }
}

/// A bare name that is not set here is not set there either.
fn environment(wishes: &[String]) -> Result<BTreeMap<String, String>, UsageError> {
    let mut env = BTreeMap::new();
    for wish in wishes {
        let (name, value) = match wish.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (wish.as_str(), std::env::var(wish).ok()),
        };
        if name.is_empty() {
            return Err(UsageError::Env(wish.clone()));
        }
        if let Some(value) = value {
            env.insert(name.to_owned(), value);
        }
    }
    Ok(env)
}
