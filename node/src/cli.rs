//! The command line: parsed here, once, into what the rest of the program takes.

mod fleet;
mod image;
mod template;
mod words;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use argh::FromArgs;
use rundlet_node::image::ImageName;
use rundlet_node::image::name::NameError;
use rundlet_node::run::{Machine, Source};
use rundlet_node::template::TemplateName;
use rundlet_node::{run, scratch};

pub(crate) use fleet::Fleet;
pub(crate) use image::{Image, ImageVerb, Import, List, Remove};
pub(crate) use template::{
    Build, Inspect, List as TemplateList, Remove as TemplateRemove, Template, TemplateVerb,
};
pub(crate) use words::split_switches;

/// Runs commands in throw-away microVMs.
#[derive(FromArgs, Debug)]
#[argh(
    note = "Environment: RUNDLET_STORE (image store), RUNDLET_GUEST (directory of vmlinux and initrd.cpio),\nRUNDLET_LIBEXEC (directory of rundlet-vmm and vhost-blk-ro), RUNDLET_RUNTIME (run directories),\nRUST_LOG (info, debug: what goes on, on stderr).",
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
    Image(Image),
    Template(Box<Template>),
    Fleet(Fleet),
    Doctor(Doctor),
}

/// Runs a command in a new sandbox, booted from an image or cloned from a template, and ends with its
/// exit code.
#[derive(FromArgs, Debug)]
#[argh(
    subcommand,
    name = "run",
    note = "The first Ctrl-C goes to the command, the second ends the sandbox.",
    error_code(124, "--timeout has passed."),
    error_code(125, "Rundlet itself failed."),
    error_code(126, "The command cannot be executed."),
    error_code(127, "The command is not in the image."),
    error_code(128, "and above: 128 plus the signal that ended the command.")
)]
pub(crate) struct Run {
    /// clone this template instead of booting an image
    #[argh(option)]
    template: Option<TemplateName>,

    /// memory of the sandbox in MiB (default 256)
    #[argh(option)]
    memory: Option<u32>,

    /// number of virtual CPUs (default 1)
    #[argh(option)]
    vcpus: Option<u8>,

    /// environment variable K=V for the command, or K to pass ours on; may be repeated
    #[argh(option)]
    env: Vec<String>,

    /// working directory of the command (default /)
    #[argh(option)]
    workdir: Option<String>,

    /// user of the command, USER[:GROUP], names or numbers (default root)
    #[argh(option)]
    user: Option<String>,

    /// give the command a terminal
    #[argh(switch, short = 't')]
    tty: bool,

    /// pass our stdin to the command
    #[argh(switch, short = 'i')]
    interactive: bool,

    /// end the command after this many seconds, with exit code 124
    #[argh(option)]
    timeout: Option<u64>,

    /// give the guest this many seconds to come up (default 60)
    #[argh(option, default = "60")]
    boot_timeout: u64,

    /// size of the writable layer in MiB (default 1024); takes space only as it is written
    #[argh(option)]
    scratch_size: Option<u64>,

    /// use this guest kernel
    #[argh(option)]
    kernel: Option<PathBuf>,

    /// use this initial file system of the guest
    #[argh(option)]
    initrd: Option<PathBuf>,

    /// write the guest's console to this file
    #[argh(option)]
    console: Option<PathBuf>,

    /// print the start's named instants to stderr, as JSON
    #[argh(switch)]
    timeline: bool,

    /// print the memory of the sandbox's processes to stderr, as JSON
    #[argh(switch)]
    stats: bool,

    /// the image (none with --template), then the command and its arguments after `--`
    #[argh(positional, greedy, arg_name = "image -- command")]
    words: Vec<String>,
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
    #[error("{0} is 0, at least 1 is needed")]
    Nought(&'static str),
    #[error(
        "{0} is about the warm-up; give that after `--`: rundlet template build IMAGE NAME -- CMD ARGS…"
    )]
    NoWarmUp(&'static str),
}

impl TryFrom<Run> for run::Request {
    type Error = UsageError;

    fn try_from(mut args: Run) -> Result<Self, UsageError> {
        let (source, argv) = source(&mut args)?;
        let timeout = args
            .timeout
            .map(|it| seconds("--timeout", it))
            .transpose()?;
        let mut env = environment(&args.env)?;
        if args.tty
            && let Ok(term) = std::env::var("TERM")
        {
            env.entry("TERM".into()).or_insert(term);
        }
        Ok(Self {
            source,
            argv,
            env,
            workdir: args.workdir,
            user: args.user,
            tty: args.tty,
            interactive: args.interactive,
            timeout,
            boot_timeout: seconds("--boot-timeout", args.boot_timeout)?,
            console: args.console,
            timeline: args.timeline,
            stats: args.stats,
        })
    }
}

/// What to run it in, and the command.
fn source(args: &mut Run) -> Result<(Source, Vec<String>), UsageError> {
    let mut words = std::mem::take(&mut args.words);
    let Some(template) = args.template.take() else {
        if words.is_empty() {
            return Err(UsageError::Nothing);
        }
        let image: ImageName = words.remove(0).parse()?;
        if words.first().is_some_and(|first| first == "--") {
            words.remove(0);
        }
        if words.is_empty() {
            return Err(UsageError::NoCommand(image));
        }
        let machine = Machine {
            image,
            memory_mib: args.memory.unwrap_or(MEMORY_MIB),
            vcpus: args.vcpus.unwrap_or(1),
            scratch_mib: scratch_size(args.scratch_size)?,
            kernel: args.kernel.take(),
            initrd: args.initrd.take(),
        };
        return Ok((Source::Image(machine), words));
    };
    for (option, given) in [
        ("--memory", args.memory.is_some()),
        ("--vcpus", args.vcpus.is_some()),
        ("--scratch-size", args.scratch_size.is_some()),
        ("--kernel", args.kernel.is_some()),
        ("--initrd", args.initrd.is_some()),
    ] {
        if given {
            return Err(UsageError::Templates { option });
        }
    }
    match words.first().map(String::as_str) {
        None => return Err(UsageError::NoClonedCommand(template)),
        Some("--") => drop(words.remove(0)),
        Some(_) => return Err(UsageError::TwoSources(template)),
    }
    if words.is_empty() {
        return Err(UsageError::NoClonedCommand(template));
    }
    Ok((Source::Template(template), words))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<run::Request, String> {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let args = split_switches(&args);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let cli = Cli::from_args(&["rundlet"], &args).map_err(|early| early.output)?;
        match cli.verb {
            Some(Verb::Run(run)) => (*run)
                .try_into()
                .map_err(|error: UsageError| error.to_string()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_s_own_options_are_left_alone() {
        for args in [
            [
                "run", "--memory", "128", "-it", "img", "--", "ls", "-it", "--", "--memory",
            ],
            [
                "run", "-i", "-t", "--memory", "128", "img", "ls", "-it", "--", "--memory",
            ],
        ] {
            let request = parse(&args).unwrap();
            assert_eq!(request.argv, ["ls", "-it", "--", "--memory"], "{args:?}");
            let Source::Image(machine) = request.source else {
                panic!("{:?}", request.source);
            };
            assert_eq!((machine.memory_mib, machine.vcpus), (128, 1));
            assert!(request.tty && request.interactive);
        }
    }

    #[test]
    fn a_template_takes_the_place_of_an_image() {
        let args = [
            "run",
            "--template",
            "py:3",
            "-it",
            "--",
            "ls",
            "-it",
            "--",
            "--template",
        ];
        let request = parse(&args).unwrap();
        assert_eq!(request.argv, ["ls", "-it", "--", "--template"]);
        assert_eq!(request.source, Source::Template("py:3".parse().unwrap()));
        assert!(request.tty && request.interactive);
    }

    #[test]
    fn environment_comes_as_pairs_and_as_names() {
        let args = [
            "run",
            "--env",
            "A=1=2",
            "--env",
            "PATH",
            "--env",
            "NOT_SET_HERE",
            "x",
            "--",
            "y",
        ];
        let env = parse(&args).unwrap().env;
        assert_eq!(env["A"], "1=2");
        assert_eq!(env["PATH"], std::env::var("PATH").unwrap());
        assert_eq!(env.len(), 2);
    }

    #[test]
    fn bad_usage_is_one_sentence() {
        for (args, words) in [
            (vec!["run", "img"], "a command is missing"),
            (vec!["run"], "an image and a command"),
            (vec!["run", "--template", "t"], "run --template t:latest"),
            (vec!["run", "--template", "t", "--"], "a command is missing"),
            (
                vec!["run", "--template", "t", "img", "--", "x"],
                "template's image",
            ),
            (
                vec!["run", "--template", "t", "--memory", "128", "--", "x"],
                "--memory is decided by the template",
            ),
            (
                vec!["run", "--vcpus", "2", "--template", "t", "--", "x"],
                "--vcpus is decided",
            ),
            (
                vec!["run", "--template", "t", "--scratch-size", "64", "--", "x"],
                "--scratch-size is decided",
            ),
            (vec!["run", "Img", "--", "x"], "lower-case"),
            (vec!["run", "--env", "=x", "img", "--", "x"], "--env"),
            (
                vec!["run", "--scratch-size", "1", "img", "--", "x"],
                "--scratch-size",
            ),
            (vec!["run", "--timeout", "0", "img", "--", "x"], "--timeout"),
            (
                vec!["run", "--boot-timeout", "0", "img", "--", "x"],
                "--boot-timeout",
            ),
        ] {
            let error = parse(&args).unwrap_err();
            assert!(error.contains(words), "{args:?}: {error}");
        }
    }
}
