//! `rundlet run`.

use std::path::PathBuf;
use std::str::FromStr;

use argh::FromArgs;
use rundlet_node::image::ImageName;
use rundlet_node::run::{self, Machine, Source};
use rundlet_node::template::TemplateName;

use super::{MEMORY_MIB, UsageError, environment, scratch_size, seconds};

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
    #[argh(option)]
    boot_timeout: Option<u64>,

    /// whether a daemon hosts the sandbox: auto (where one answers and no option is in its way), never, always
    #[argh(option, default = "Daemon::Auto")]
    daemon: Daemon,

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

/// Seconds that a guest has to come up where nothing is said.
const BOOT_TIMEOUT: u64 = 60;

/// Who hosts a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Daemon {
    Auto,
    Never,
    Always,
}

impl FromStr for Daemon {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "auto" => Ok(Self::Auto),
            "never" => Ok(Self::Never),
            "always" => Ok(Self::Always),
            _ => Err("auto, never and always are possible".into()),
        }
    }
}

impl Run {
    pub(crate) fn daemon(&self) -> Daemon {
        self.daemon
    }

    /// An option that a daemon cannot do: it is about processes of ours.
    pub(crate) fn ours_alone(&self) -> Option<&'static str> {
        let options = [
            ("--kernel", self.kernel.is_some()),
            ("--initrd", self.initrd.is_some()),
            ("--console", self.console.is_some()),
            ("--boot-timeout", self.boot_timeout.is_some()),
            ("--timeline", self.timeline),
            ("--stats", self.stats),
        ];
        options
            .iter()
            .find(|(_, given)| *given)
            .map(|(name, _)| *name)
    }
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
            boot_timeout: seconds("--boot-timeout", args.boot_timeout.unwrap_or(BOOT_TIMEOUT))?,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Verb, split_switches};

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
