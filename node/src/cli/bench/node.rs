//! `rundlet bench node`.

use std::path::PathBuf;
use std::time::Duration;

use argh::FromArgs;
use rundlet_node::bench::{self, NodePlan};
use rundlet_node::template::TemplateName;

use super::{UsageError, at_least_one};

/// The most slots that a pool has, with room for those that are being emptied.
const MOST_ALIVE: usize = 10_000;
const MOST_AT_ONCE: usize = 256;

/// Starts clones through a daemon and beside it in this process: what the daemon adds to a start, and how many starts
/// a second it keeps up. Starts a daemon of its own, which needs root and cgroup2, unless --socket names one.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "node")]
pub(crate) struct Node {
    /// clone this template
    #[argh(option)]
    template: TemplateName,

    /// starts by each of the two ways, one at a time and in turns (default 50; 0: none)
    #[argh(option, default = "50")]
    pairs: usize,

    /// starts in a row by each way (default 500; 0: none)
    #[argh(option, default = "500")]
    count: usize,

    /// sandboxes that live at most meanwhile (default 50)
    #[argh(option, default = "50")]
    alive: usize,

    /// starts that are under way at most meanwhile (default 4)
    #[argh(option, default = "4")]
    at_once: usize,

    /// measure the daemon that serves here
    #[argh(option)]
    socket: Option<PathBuf>,

    /// the cgroup of a daemon of our own, not there yet (default /sys/fs/cgroup/rundlet-bench-node)
    #[argh(option, default = "PathBuf::from(bench::NODE_ROOT)")]
    root: PathBuf,

    /// give the host so many seconds to become quiet before something is measured (default 30)
    #[argh(option, default = "30")]
    settle: u64,

    /// write the figures to this file; - is stdout, instead of the table
    #[argh(option)]
    json: Option<PathBuf>,
}

impl Node {
    pub(crate) fn plan(self, command: Vec<String>) -> Result<NodePlan, UsageError> {
        at_least_one("--count and --pairs", self.count.max(self.pairs))?;
        for (option, number, most) in [
            ("--alive", self.alive, MOST_ALIVE),
            ("--at-once", self.at_once, MOST_AT_ONCE),
        ] {
            at_least_one(option, number)?;
            if number > most {
                let most = most.try_into().unwrap_or(u32::MAX);
                return Err(UsageError::TooMany(option, most));
            }
        }
        Ok(NodePlan {
            template: self.template,
            pairs: self.pairs,
            count: self.count,
            alive: self.alive,
            at_once: self.at_once,
            socket: self.socket,
            root: self.root,
            settle: Duration::from_secs(self.settle),
            json: self.json,
            command,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::BenchVerb;
    use crate::cli::{Cli, Verb};

    fn parse(args: &[&str]) -> Result<NodePlan, String> {
        let args = [&["bench", "node"], args].concat();
        let cli = Cli::from_args(&["rundlet"], &args).map_err(|early| early.output)?;
        match cli.verb {
            Some(Verb::Bench(bench)) => match bench.verb {
                BenchVerb::Node(node) => node.plan(Vec::new()).map_err(|error| error.to_string()),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_run_has_its_defaults_and_its_limits() {
        let plan = parse(&["--template", "t"]).unwrap();
        assert_eq!(
            (plan.pairs, plan.count, plan.alive, plan.at_once),
            (50, 500, 50, 4)
        );
        let plan = parse(&["--template", "t", "--count", "0", "--socket", "/x"]).unwrap();
        assert_eq!((plan.count, plan.socket), (0, Some("/x".into())));
        for (args, words) in [
            (
                vec!["--count", "0", "--pairs", "0"],
                "--count and --pairs is 0",
            ),
            (vec!["--alive", "0"], "--alive is 0"),
            (vec!["--at-once", "257"], "--at-once has a number above 256"),
        ] {
            let args = [&["--template", "t"], &*args].concat();
            let error = parse(&args).unwrap_err();
            assert!(error.contains(words), "{args:?}: {error}");
        }
        assert!(parse(&[]).unwrap_err().contains("--template"));
    }
}
