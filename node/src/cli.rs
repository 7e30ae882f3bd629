//! The command line: parsed here, once, into what the rest of the program takes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use argh::FromArgs;
use rundlet_node::image::ImageName;
use rundlet_node::{run, scratch};

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
    Doctor(Doctor),
}

/// Runs a command in a new sandbox and ends with its exit code.
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
    /// memory of the sandbox in MiB (default 256)
    #[argh(option, default = "256")]
    memory: u32,

    /// number of virtual CPUs (default 1)
    #[argh(option, default = "1")]
    vcpus: u8,

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
    #[argh(option, default = "1024")]
    scratch_size: u64,

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

    /// the image
    #[argh(positional, arg_name = "name")]
    image: ImageName,

    /// the command and its arguments, after `--`
    #[argh(positional, greedy)]
    command: Vec<String>,
}

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

/// Says whether sandboxes can run here, and what to do if not. Exit code 1 when they cannot.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "doctor")]
pub(crate) struct Doctor {
    /// as JSON
    #[argh(switch)]
    pub(crate) json: bool,
}

/// Why arguments that could be read are refused all the same.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UsageError {
    #[error("a command is missing: rundlet run {0} -- CMD ARGS…")]
    NoCommand(ImageName),
    #[error("--env {0:?} is neither K=V nor K")]
    Env(String),
    #[error("--scratch-size is {0} MiB, {min} to {max} are possible", min = scratch::SIZES_MIB.start(), max = scratch::SIZES_MIB.end())]
    Scratch(u64),
    #[error("{0} is 0 seconds, at least 1 is needed")]
    Zero(&'static str),
}

impl TryFrom<Run> for run::Request {
    type Error = UsageError;

    fn try_from(args: Run) -> Result<Self, UsageError> {
        let mut argv = args.command;
        if argv.first().is_some_and(|first| first == "--") {
            argv.remove(0);
        }
        if argv.is_empty() {
            return Err(UsageError::NoCommand(args.image));
        }
        if !scratch::SIZES_MIB.contains(&args.scratch_size) {
            return Err(UsageError::Scratch(args.scratch_size));
        }
        let seconds = |name, seconds| match seconds {
            0 => Err(UsageError::Zero(name)),
            seconds => Ok(Duration::from_secs(seconds)),
        };
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
            image: args.image,
            argv,
            env,
            workdir: args.workdir,
            user: args.user,
            tty: args.tty,
            interactive: args.interactive,
            timeout,
            boot_timeout: seconds("--boot-timeout", args.boot_timeout)?,
            memory_mib: args.memory,
            vcpus: args.vcpus,
            scratch_mib: args.scratch_size,
            kernel: args.kernel,
            initrd: args.initrd,
            console: args.console,
            timeline: args.timeline,
            stats: args.stats,
        })
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

/// Long options without a value; the others take the argument after them.
const SWITCHES: [&str; 5] = ["--tty", "--interactive", "--timeline", "--stats", "--help"];

/// Reads short switches that were written together: `-it` is `-i -t`. What comes after the image's name
/// is the command's and left alone.
pub(crate) fn split_switches(args: &[String]) -> Vec<String> {
    let mut all = Vec::with_capacity(args.len() + 1);
    let mut ours = args.first().is_some_and(|verb| verb == "run");
    let mut value = true;
    for arg in args {
        if ours && matches!(arg.as_str(), "-it" | "-ti") {
            all.extend(["-i".to_owned(), "-t".to_owned()]);
            continue;
        }
        ours = ours && (value || (arg.starts_with('-') && arg != "--"));
        value = arg.starts_with("--") && !SWITCHES.contains(&arg.as_str());
        all.push(arg.clone());
    }
    all
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
            assert_eq!(request.memory_mib, 128);
            assert!(request.tty && request.interactive);
        }
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
