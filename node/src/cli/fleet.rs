//! `rundlet fleet`.

use argh::FromArgs;
use rundlet_node::fleet;
use rundlet_node::template::TemplateName;

use super::{UsageError, seconds};

/// Starts many clones of a template at once, runs a command in each, and says what came of it as lines
/// of JSON. Ends with the highest exit code; with 125 if a clone failed.
#[derive(FromArgs, Debug)]
#[argh(
    subcommand,
    name = "fleet",
    example = "rundlet fleet --template py --count 200 --at-once 50 -- hostname"
)]
pub(crate) struct Fleet {
    /// the template
    #[argh(option)]
    template: TemplateName,

    /// number of clones (default 10)
    #[argh(option, default = "10")]
    count: usize,

    /// start as many at a time (default 10)
    #[argh(option, default = "10")]
    at_once: usize,

    /// give each command this many seconds (default 60)
    #[argh(option, default = "60")]
    timeout: u64,

    /// say where the time of each start went
    #[argh(switch)]
    timeline: bool,

    /// stay; every line on stdin starts as many clones again and runs the command in all there are
    #[argh(switch)]
    stay: bool,

    /// the command and its arguments, after `--`
    #[argh(positional, greedy)]
    command: Vec<String>,
}

impl TryFrom<Fleet> for fleet::Request {
    type Error = UsageError;

    fn try_from(args: Fleet) -> Result<Self, UsageError> {
        if args.command.is_empty() {
            return Err(UsageError::NoFleetCommand(args.template));
        }
        for (name, number) in [("--count", args.count), ("--at-once", args.at_once)] {
            if number == 0 {
                return Err(UsageError::Nought(name));
            }
        }
        Ok(Self {
            template: args.template,
            argv: args.command,
            count: args.count,
            at_once: args.at_once,
            timeout: seconds("--timeout", args.timeout)?,
            timeline: args.timeline,
            stay: args.stay,
        })
    }
}
