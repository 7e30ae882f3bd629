//! The verbs that a daemon carries out.

use std::collections::BTreeMap;

use argh::FromArgs;
use rundlet_node::client::session;
use rundlet_node::host::model::{CreateSandbox, Limits, Source};
use rundlet_node::image::ImageName;
use rundlet_node::template::TemplateName;
use rundlet_protocol::ExecSpec;

use super::{UsageError, environment};

/// Creates a sandbox that stays, prints its id when it is ready. Needs a daemon.
#[derive(FromArgs, Debug)]
#[argh(
    subcommand,
    name = "create",
    example = "rundlet create --label job=7 debian\nrundlet exec $(rundlet create --template py) -- python3 -c 'print(1)'"
)]
pub(crate) struct Create {
    /// clone this template instead of booting an image
    #[argh(option)]
    template: Option<TemplateName>,

    /// memory of the sandbox in MiB (default 256)
    #[argh(option)]
    memory: Option<u32>,

    /// number of virtual CPUs (default 1)
    #[argh(option)]
    vcpus: Option<u8>,

    /// size of the writable layer in MiB (default 1024)
    #[argh(option)]
    scratch_size: Option<u64>,

    /// environment variable K=V for all its commands, or K to pass ours on; may be repeated
    #[argh(option)]
    env: Vec<String>,

    /// label NAME=VALUE; may be repeated
    #[argh(option)]
    label: Vec<String>,

    /// stop it after this many seconds
    #[argh(option)]
    timeout: Option<u64>,

    /// CPU quota in thousandths of a CPU
    #[argh(option)]
    cpu_millis: Option<u32>,

    /// limit of all memory, the VMM's own included, in MiB
    #[argh(option)]
    memory_max: Option<u32>,

    /// limit of the VMM's threads
    #[argh(option)]
    pids: Option<u32>,

    /// io.max line, as of cgroup v2; may be repeated
    #[argh(option)]
    io: Vec<String>,

    /// idempotency key: the same again is the same sandbox
    #[argh(option)]
    pub(crate) key: Option<String>,

    /// the image (none with --template)
    #[argh(positional)]
    image: Option<ImageName>,
}

/// Runs a command in a sandbox of the daemon, and ends with its exit code.
#[derive(FromArgs, Debug)]
#[argh(
    subcommand,
    name = "exec",
    note = "The first Ctrl-C goes to the command, the second ends it.",
    example = "rundlet exec -it 0123456789ab -- bash"
)]
pub(crate) struct Exec {
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

    /// the sandbox
    #[argh(positional)]
    pub(crate) id: String,

    /// the command and its arguments, after `--`
    #[argh(positional, greedy)]
    command: Vec<String>,
}

/// Lists the daemon's sandboxes.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "ps")]
pub(crate) struct Ps {
    /// only those with this label, NAME=VALUE; may be repeated
    #[argh(option)]
    pub(crate) label: Vec<String>,

    /// those that have ended, too
    #[argh(switch, short = 'a')]
    pub(crate) all: bool,

    /// as JSON
    #[argh(switch)]
    pub(crate) json: bool,
}

/// Prints everything about a sandbox, as JSON.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "inspect")]
pub(crate) struct InspectSandbox {
    #[argh(positional)]
    pub(crate) id: String,
}

/// Prints the console of a sandbox's guest.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "logs")]
pub(crate) struct Logs {
    /// go on until the sandbox has ended
    #[argh(switch, short = 'f')]
    pub(crate) follow: bool,

    #[argh(positional)]
    pub(crate) id: String,
}

/// Asks sandboxes to power off, and kills those that do not in time.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "stop")]
pub(crate) struct Stop {
    /// seconds before it is killed (default 10)
    #[argh(option)]
    pub(crate) grace: Option<u64>,

    #[argh(positional)]
    pub(crate) id: Vec<String>,
}

/// Kills sandboxes.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "kill")]
pub(crate) struct Kill {
    #[argh(positional)]
    pub(crate) id: Vec<String>,
}

/// Removes the records of sandboxes that have ended.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "rm")]
pub(crate) struct Rm {
    /// kill those that live
    #[argh(switch, short = 'f')]
    pub(crate) force: bool,

    #[argh(positional)]
    pub(crate) id: Vec<String>,
}

/// Prints what happens, one line of JSON each, until it is interrupted.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "events")]
pub(crate) struct Events {
    /// begin after this sequence number (default: from now on; 0: all that are kept)
    #[argh(option)]
    pub(crate) since: Option<u64>,
}

impl TryFrom<Create> for CreateSandbox {
    type Error = UsageError;

    fn try_from(args: Create) -> Result<Self, UsageError> {
        let source = match (args.image, args.template) {
            (Some(image), None) => Source::Image(image.to_string()),
            (None, Some(template)) => Source::Template(template.to_string()),
            _ => return Err(UsageError::OneSource),
        };
        Ok(Self {
            source,
            memory_mib: args.memory,
            vcpus: args.vcpus,
            scratch_mib: args.scratch_size,
            env: environment(&args.env)?,
            labels: labels(&args.label)?,
            timeout_s: args.timeout,
            limits: Limits {
                cpu_millis: args.cpu_millis,
                memory_mib: args.memory_max,
                pids: args.pids,
                io: args.io,
            },
            auto_remove: false,
        })
    }
}

fn labels(wishes: &[String]) -> Result<BTreeMap<String, String>, UsageError> {
    let pair = |wish: &String| {
        let pair = wish.split_once('=').filter(|(name, _)| !name.is_empty());
        let (name, value) = pair.ok_or_else(|| UsageError::Label(wish.clone()))?;
        Ok((name.to_owned(), value.to_owned()))
    };
    wishes.iter().map(pair).collect()
}

impl TryFrom<Exec> for session::Wish {
    type Error = UsageError;

    fn try_from(args: Exec) -> Result<Self, UsageError> {
        let mut argv = args.command;
        if argv.first().is_some_and(|first| first == "--") {
            argv.remove(0);
        }
        if argv.is_empty() {
            return Err(UsageError::NoExecCommand(args.id));
        }
        let mut env = environment(&args.env)?;
        if args.tty
            && let Ok(term) = std::env::var("TERM")
        {
            env.entry("TERM".into()).or_insert(term);
        }
        Ok(Self {
            spec: ExecSpec {
                argv,
                env,
                cwd: args.workdir,
                user: args.user,
                ..ExecSpec::default()
            },
            tty: args.tty,
            interactive: args.interactive,
            timeout: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Verb, split_switches};

    fn parse(args: &[&str]) -> Verb {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let args = split_switches(&args);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let cli = Cli::from_args(&["rundlet"], &args);
        cli.map_err(|early| early.output).unwrap().verb.unwrap()
    }

    #[test]
    fn the_command_of_exec_keeps_its_options() {
        for args in [
            vec![
                "exec", "-it", "--env", "A=b", "0123", "--", "ls", "-it", "--", "x",
            ],
            vec![
                "exec", "-i", "-t", "--env", "A=b", "0123", "ls", "-it", "--", "x",
            ],
        ] {
            let Verb::Exec(exec) = parse(&args) else {
                panic!("{args:?}");
            };
            assert_eq!(exec.id, "0123");
            let wish = session::Wish::try_from(exec).unwrap();
            assert_eq!(wish.spec.argv, ["ls", "-it", "--", "x"], "{args:?}");
            assert!(wish.tty && wish.interactive);
            assert_eq!(wish.spec.env["A"], "b");
        }
        let Verb::Exec(exec) = parse(&["exec", "0123", "--"]) else {
            panic!("no exec");
        };
        let error = session::Wish::try_from(exec).unwrap_err();
        assert!(error.to_string().contains("exec 0123 --"), "{error}");
    }

    #[test]
    fn a_sandbox_is_made_of_one_thing_and_has_labels() {
        let create = |args: &[&str]| match parse(&[&["create"], args].concat()) {
            Verb::Create(create) => CreateSandbox::try_from(*create),
            other => panic!("{other:?}"),
        };
        let wish = create(&["--label", "a/b=c=d", "--pids", "99", "img"]).unwrap();
        assert_eq!(wish.source, Source::Image("img:latest".into()));
        assert_eq!(wish.labels["a/b"], "c=d");
        assert_eq!(wish.limits.pids, Some(99));
        assert_eq!(create(&[]).unwrap_err(), UsageError::OneSource);
        assert_eq!(
            create(&["--template", "t", "img"]).unwrap_err(),
            UsageError::OneSource
        );
        let error = create(&["--label", "x", "img"]).unwrap_err();
        assert_eq!(error, UsageError::Label("x".into()));
    }
}
