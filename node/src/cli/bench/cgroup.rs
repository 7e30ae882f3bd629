//! `rundlet bench cgroup`.

use std::path::PathBuf;

use argh::FromArgs;
use rundlet_node::bench::{self, CgroupPlan};

use super::{Sizes, UsageError, at_least_one};

/// The largest batch: a slot and a thread for each start.
const MOST: u32 = 4096;

/// Starts processes in cgroups of their own, made ahead and made on the way: what each costs. Needs root and cgroup2;
/// no sandbox is started.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "cgroup")]
pub(crate) struct Cgroup {
    /// starts that begin at the same moment (default 1,50,200,400)
    #[argh(option, default = "Sizes(vec![1, 50, 200, 400])")]
    at_once: Sizes,

    /// starts by each way for each of these, rounded up to whole batches (default 400)
    #[argh(option, default = "400")]
    count: u32,

    /// a directory of the cgroup2 hierarchy that is not there yet (default /sys/fs/cgroup/rundlet-bench)
    #[argh(option, default = "PathBuf::from(bench::CGROUP_ROOT)")]
    root: PathBuf,

    /// write the figures to this file; - is stdout, instead of the table
    #[argh(option)]
    json: Option<PathBuf>,
}

impl Cgroup {
    pub(crate) fn plan(self) -> Result<CgroupPlan, UsageError> {
        at_least_one("--count", self.count.try_into().unwrap_or(0))?;
        let size = |size: usize| match u32::try_from(size) {
            Ok(size) if size <= MOST => Ok(size),
            _ => Err(UsageError::TooMany("--at-once", MOST)),
        };
        let at_once = self.at_once.0.into_iter().map(size);
        Ok(CgroupPlan {
            at_once: at_once.collect::<Result<_, _>>()?,
            count: self.count,
            root: self.root,
            json: self.json,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::BenchVerb;
    use crate::cli::{Cli, Verb};

    fn parse(args: &[&str]) -> Result<CgroupPlan, String> {
        let args = [&["bench", "cgroup"], args].concat();
        let cli = Cli::from_args(&["rundlet"], &args).map_err(|early| early.output)?;
        match cli.verb {
            Some(Verb::Bench(bench)) => match bench.verb {
                BenchVerb::Cgroup(cgroup) => cgroup.plan().map_err(|error| error.to_string()),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn batches_have_sizes_that_can_be() {
        assert_eq!(parse(&[]).unwrap().at_once, [1, 50, 200, 400]);
        assert_eq!(parse(&["--at-once", "7,4096"]).unwrap().at_once, [7, 4096]);
        for (args, words) in [
            (["--at-once", "4097"], "--at-once has a number above 4096"),
            (["--at-once", "0"], "starts nothing"),
            (["--count", "0"], "--count is 0"),
        ] {
            let error = parse(&args).unwrap_err();
            assert!(error.contains(words), "{args:?}: {error}");
        }
    }
}
