//! `rundlet template …`.

use std::path::PathBuf;

use argh::FromArgs;
use rundlet_node::image::ImageName;
use rundlet_node::run::Machine;
use rundlet_node::template::{TemplateName, WarmUp, build};

use super::{MEMORY_MIB, SCRATCH_MIB, UsageError, environment, scratch_size, seconds};

/// Looks after templates: sandboxes that were booted once, to be cloned in milliseconds.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "template")]
pub(crate) struct Template {
    #[argh(subcommand)]
    pub(crate) verb: TemplateVerb,
}

#[derive(FromArgs, Debug)]
#[argh(subcommand)]
pub(crate) enum TemplateVerb {
    Build(Box<Build>),
    List(List),
    Inspect(Inspect),
    Check(Check),
    Remove(Remove),
}

/// Boots an image, runs a warm-up command in it if there is one, and captures it as a template.
///
/// Without --ready-line the warm-up has to end with exit code 0; what it wrote to its disk, and processes
/// that it left running, are in every clone. With --ready-line it stays: the template is captured when it
/// prints that line on its stdout, and it runs on in every clone, with its stdin at its end and nobody reading its
/// output.
#[derive(FromArgs, Debug)]
#[argh(
    subcommand,
    name = "build",
    example = "rundlet template build debian py -- python3 -c 'import json'\nrundlet template build --ready-line ready debian handler -- python3 /handler.py\nrundlet run --template py -- python3 -c 'print(1)'"
)]
pub(crate) struct Build {
    /// memory of the clones in MiB (default 256)
    #[argh(option, default = "MEMORY_MIB")]
    memory: u32,

    /// number of virtual CPUs of the clones (default 1)
    #[argh(option, default = "1")]
    vcpus: u8,

    /// size of the clones' writable layer in MiB (default 1024); takes space only as it is written
    #[argh(option, default = "SCRATCH_MIB")]
    scratch_size: u64,

    /// the warm-up is ready when it prints this line on its stdout, and stays
    #[argh(option)]
    ready_line: Option<String>,

    /// environment variable K=V for the warm-up, or K to pass ours on; may be repeated
    #[argh(option)]
    env: Vec<String>,

    /// working directory of the warm-up (default /)
    #[argh(option)]
    workdir: Option<String>,

    /// user of the warm-up, USER[:GROUP], names or numbers (default root)
    #[argh(option)]
    user: Option<String>,

    /// give the warm-up this many seconds (default 300)
    #[argh(option, default = "300")]
    timeout: u64,

    /// give the guest this many seconds to come up (default 60)
    #[argh(option, default = "60")]
    boot_timeout: u64,

    /// use this guest kernel
    #[argh(option)]
    kernel: Option<PathBuf>,

    /// use this initial file system of the guest
    #[argh(option)]
    initrd: Option<PathBuf>,

    /// the image
    #[argh(positional)]
    image: ImageName,

    /// name of the template; one that is there is replaced
    #[argh(positional)]
    name: TemplateName,

    /// the warm-up command and its arguments, after `--`
    #[argh(positional, greedy)]
    command: Vec<String>,
}

/// Lists the templates.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "ls")]
pub(crate) struct List {
    /// as JSON
    #[argh(switch)]
    pub(crate) json: bool,
}

/// Prints everything about a template, as JSON.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "inspect")]
pub(crate) struct Inspect {
    #[argh(positional)]
    pub(crate) name: TemplateName,
}

/// Says whether a template can be cloned on this host, by what is installed now. Exit code 1 and why when it cannot.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "check")]
pub(crate) struct Check {
    #[argh(positional)]
    pub(crate) name: TemplateName,
}

/// Removes a template, unless a sandbox uses it.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "rm")]
pub(crate) struct Remove {
    #[argh(positional)]
    pub(crate) name: TemplateName,
}

impl TryFrom<Build> for build::Request {
    type Error = UsageError;

    fn try_from(args: Build) -> Result<Self, UsageError> {
        let timeout = seconds("--timeout", args.timeout)?;
        let boot_timeout = seconds("--boot-timeout", args.boot_timeout)?;
        let mut argv = args.command;
        if argv.first().is_some_and(|first| first == "--") {
            argv.remove(0);
        }
        if argv.is_empty() {
            for (option, given) in [
                ("--ready-line", args.ready_line.is_some()),
                ("--env", !args.env.is_empty()),
                ("--workdir", args.workdir.is_some()),
                ("--user", args.user.is_some()),
            ] {
                if given {
                    return Err(UsageError::NoWarmUp(option));
                }
            }
        }
        let warm_up = WarmUp {
            argv,
            env: environment(&args.env)?,
            workdir: args.workdir,
            user: args.user,
            ready_line: args.ready_line,
            timeout_s: timeout.as_secs(),
        };
        Ok(Self {
            name: args.name,
            machine: Machine {
                image: args.image,
                memory_mib: args.memory,
                vcpus: args.vcpus,
                scratch_mib: scratch_size(Some(args.scratch_size))?,
                kernel: args.kernel,
                initrd: args.initrd,
            },
            warm_up: Some(warm_up).filter(|warm_up| !warm_up.argv.is_empty()),
            boot_timeout,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Verb};

    fn parse(args: &[&str]) -> Result<build::Request, String> {
        let args = [&["template", "build"], args].concat();
        let cli = Cli::from_args(&["rundlet"], &args).map_err(|early| early.output)?;
        match cli.verb {
            Some(Verb::Template(template)) => match template.verb {
                TemplateVerb::Build(build) => (*build)
                    .try_into()
                    .map_err(|error: UsageError| error.to_string()),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_warm_up_is_what_comes_after_the_names() {
        let request = parse(&[
            "--memory",
            "128",
            "--ready-line",
            "up",
            "img",
            "t",
            "--",
            "sh",
            "-c",
            "echo up; sleep 9",
            "--",
            "--memory",
        ])
        .unwrap();
        let warm_up = request.warm_up.unwrap();
        assert_eq!(
            warm_up.argv,
            ["sh", "-c", "echo up; sleep 9", "--", "--memory"]
        );
        assert_eq!(warm_up.ready_line.as_deref(), Some("up"));
        assert_eq!(request.machine.memory_mib, 128);
        assert_eq!(request.name.to_string(), "t:latest");
        assert!(parse(&["img", "t"]).unwrap().warm_up.is_none());
        assert!(parse(&["img", "t", "--"]).unwrap().warm_up.is_none());
    }

    #[test]
    fn bad_usage_is_one_sentence() {
        for (args, words) in [
            (vec!["img"], "name"),
            (vec!["img", "T"], "lower-case"),
            (vec!["--ready-line", "up", "img", "t"], "--ready-line"),
            (vec!["--user", "nobody", "img", "t", "--"], "--user"),
            (vec!["--timeout", "0", "img", "t"], "--timeout"),
            (vec!["--scratch-size", "1", "img", "t"], "--scratch-size"),
        ] {
            let error = parse(&args).unwrap_err();
            assert!(error.contains(words), "{args:?}: {error}");
        }
    }
}
