//! `rundlet bench`.

mod cgroup;
mod node;

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use argh::FromArgs;
use rundlet_node::bench::{self, DensityPlan, Output, Peer, Plan, Sandboxes, StartPlan};
use rundlet_node::image::ImageName;
use rundlet_node::run::Machine;
use rundlet_node::template::TemplateName;

use super::{SCRATCH_MIB, UsageError};
use cgroup::Cgroup;
use node::Node;

/// Memory of a measured sandbox where nothing is said, MiB: what other people's figures are of.
const BENCH_MEMORY_MIB: u32 = 128;

/// Measures what sandboxes cost to start and to keep, beside other systems if wanted.
#[derive(FromArgs, Debug)]
#[argh(
    subcommand,
    name = "bench",
    note = "Peers are qemu, firecracker-cold, firecracker-restore, and firecracker for both of the latter.\nAll systems run the same kernel, init, root image and size. docs/bench.md says what the figures mean.",
    example = "rundlet bench start --template py --peer qemu --peer firecracker=./firecracker --json start.json\nrundlet bench density --template py --count 200 --step 50 --json density.json\nrundlet bench node --template py\nrundlet bench report start.json density.json --html report.html"
)]
pub(crate) struct Bench {
    #[argh(subcommand)]
    pub(crate) verb: BenchVerb,
}

#[derive(FromArgs, Debug)]
#[argh(subcommand)]
pub(crate) enum BenchVerb {
    Start(Box<Start>),
    Density(Box<Density>),
    Cgroup(Cgroup),
    Node(Node),
    Report(Merge),
}

/// Starts sandboxes in batches: how long each takes, and what it costs in processor time.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "start")]
pub(crate) struct Start {
    /// starts for each concurrency, rounded up to whole batches (default 20)
    #[argh(option, default = "20")]
    count: usize,

    /// sizes of the batches, whose starts all begin at the same moment (default 1,10)
    #[argh(option, default = "Sizes(vec![1, 10])")]
    concurrency: Sizes,

    /// measure again with so many sandboxes deployed before (default 0: not again)
    #[argh(option, default = "0")]
    deployed: usize,

    /// clone this template
    #[argh(option)]
    template: Option<TemplateName>,

    /// boot this image; with --template its image, to have both
    #[argh(option)]
    cold: Option<ImageName>,

    /// memory in MiB where no template decides it (default 128)
    #[argh(option)]
    memory: Option<u32>,

    /// virtual CPUs where no template decides them (default 1)
    #[argh(option)]
    vcpus: Option<u8>,

    /// measure this system, too, NAME[=PATH]; may be repeated
    #[argh(option)]
    peer: Vec<Peer>,

    /// give the host so many seconds to become quiet before something is measured (default 30)
    #[argh(option, default = "30")]
    settle: u64,

    /// write the figures to this file; - is stdout, instead of the table
    #[argh(option)]
    json: Option<PathBuf>,

    /// write a page with plots to this file
    #[argh(option)]
    html: Option<PathBuf>,
}

/// Keeps more and more idle sandboxes: what each costs in memory and wake-ups.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "density")]
pub(crate) struct Density {
    /// sandboxes at the end (default 100)
    #[argh(option, default = "100")]
    count: usize,

    /// sandboxes from one row to the next (default 50)
    #[argh(option, default = "50")]
    step: usize,

    /// start so many at a time (default 8)
    #[argh(option, default = "8")]
    at_once: usize,

    /// watch the idle host for so many seconds for each row (default 10)
    #[argh(option, default = "10")]
    quiet: u64,

    /// clone this template
    #[argh(option)]
    template: Option<TemplateName>,

    /// boot this image; with --template its image, to have both
    #[argh(option)]
    cold: Option<ImageName>,

    /// memory in MiB where no template decides it (default 128)
    #[argh(option)]
    memory: Option<u32>,

    /// virtual CPUs where no template decides them (default 1)
    #[argh(option)]
    vcpus: Option<u8>,

    /// measure this system, too, NAME[=PATH]; may be repeated
    #[argh(option)]
    peer: Vec<Peer>,

    /// give the host so many seconds to become quiet before something is measured (default 30)
    #[argh(option, default = "30")]
    settle: u64,

    /// write the figures to this file; - is stdout, instead of the table
    #[argh(option)]
    json: Option<PathBuf>,

    /// write a page with plots to this file
    #[argh(option)]
    html: Option<PathBuf>,
}

/// Makes one page, or table, of the JSON of several runs.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "report")]
pub(crate) struct Merge {
    /// files that --json wrote
    #[argh(positional)]
    pub(crate) files: Vec<PathBuf>,

    /// write the merged figures to this file; - is stdout, instead of the table
    #[argh(option)]
    json: Option<PathBuf>,

    /// write a page with plots to this file
    #[argh(option)]
    html: Option<PathBuf>,
}

/// Numbers with commas between them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sizes(Vec<usize>);

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size = |text: &str| match text.trim().parse() {
            Ok(0) => Err("a batch of 0 starts nothing".to_owned()),
            Ok(size) => Ok(size),
            Err(_) => Err(format!("{text:?} is no number; 1,10,50 would be three")),
        };
        text.split(',')
            .map(size)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl Start {
    pub(crate) fn request(self, command: Vec<String>) -> Result<bench::Request, UsageError> {
        at_least_one("--count", self.count)?;
        Ok(bench::Request {
            plan: Plan::Start(StartPlan {
                count: self.count,
                concurrency: self.concurrency.0,
                deployed: self.deployed,
            }),
            sandboxes: sandboxes(self.template, self.cold, self.memory, self.vcpus)?,
            peers: self.peer,
            settle: Duration::from_secs(self.settle),
            output: Output {
                json: self.json,
                html: self.html,
            },
            command,
        })
    }
}

impl Density {
    pub(crate) fn request(self, command: Vec<String>) -> Result<bench::Request, UsageError> {
        for (name, number) in [
            ("--count", self.count),
            ("--step", self.step),
            ("--at-once", self.at_once),
        ] {
            at_least_one(name, number)?;
        }
        Ok(bench::Request {
            plan: Plan::Density(DensityPlan {
                count: self.count,
                step: self.step,
                at_once: self.at_once,
                quiet: super::seconds("--quiet", self.quiet)?,
            }),
            sandboxes: sandboxes(self.template, self.cold, self.memory, self.vcpus)?,
            peers: self.peer,
            settle: Duration::from_secs(self.settle),
            output: Output {
                json: self.json,
                html: self.html,
            },
            command,
        })
    }
}

impl Merge {
    pub(crate) fn output(&self) -> Output {
        Output {
            json: self.json.clone(),
            html: self.html.clone(),
        }
    }
}

fn at_least_one(name: &'static str, number: usize) -> Result<(), UsageError> {
    if number == 0 {
        return Err(UsageError::Nought(name));
    }
    Ok(())
}

fn sandboxes(
    template: Option<TemplateName>,
    cold: Option<ImageName>,
    memory: Option<u32>,
    vcpus: Option<u8>,
) -> Result<Sandboxes, UsageError> {
    if template.is_some() {
        for (option, given) in [("--memory", memory.is_some()), ("--vcpus", vcpus.is_some())] {
            if given {
                return Err(UsageError::Templates { option });
            }
        }
    }
    let machine = |image| Machine {
        image,
        memory_mib: memory.unwrap_or(BENCH_MEMORY_MIB),
        vcpus: vcpus.unwrap_or(1),
        scratch_mib: SCRATCH_MIB,
        kernel: None,
        initrd: None,
    };
    match (template, cold) {
        (None, None) => Err(UsageError::NothingToBench),
        (template, cold) => Ok(Sandboxes {
            template,
            cold: cold.map(machine),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Verb};

    fn parse(args: &[&str]) -> Result<bench::Request, String> {
        let args = [&["bench"], args].concat();
        let cli = Cli::from_args(&["rundlet"], &args).map_err(|early| early.output)?;
        let Some(Verb::Bench(bench)) = cli.verb else {
            panic!("{:?}", cli.verb);
        };
        let command = Vec::new();
        match bench.verb {
            BenchVerb::Start(start) => start.request(command),
            BenchVerb::Density(density) => density.request(command),
            other => panic!("{other:?}"),
        }
        .map_err(|error| error.to_string())
    }

    #[test]
    fn a_start_is_what_was_asked_for() {
        let request = parse(&[
            "start",
            "--count",
            "200",
            "--concurrency",
            "1,10, 200",
            "--template",
            "t",
            "--cold",
            "img",
            "--peer",
            "qemu",
            "--peer",
            "firecracker=/fc",
            "--deployed",
            "100",
            "--json",
            "-",
        ])
        .unwrap();
        assert_eq!(
            request.plan,
            Plan::Start(StartPlan {
                count: 200,
                concurrency: vec![1, 10, 200],
                deployed: 100,
            })
        );
        assert_eq!(request.peers.len(), 2);
        assert!(request.sandboxes.template.is_some());
        assert_eq!(request.sandboxes.cold.unwrap().memory_mib, 128);
        assert_eq!(request.output.json, Some("-".into()));
    }

    #[test]
    fn a_density_has_its_defaults() {
        let request = parse(&["density", "--cold", "img", "--memory", "64"]).unwrap();
        assert_eq!(
            request.plan,
            Plan::Density(DensityPlan {
                count: 100,
                step: 50,
                at_once: 8,
                quiet: Duration::from_secs(10),
            })
        );
        assert_eq!(request.sandboxes.cold.unwrap().memory_mib, 64);
    }

    #[test]
    fn bad_usage_is_one_sentence() {
        for (args, words) in [
            (vec!["start"], "--template or --cold"),
            (
                vec!["start", "--template", "t", "--memory", "1"],
                "--memory is decided",
            ),
            (
                vec!["density", "--template", "t", "--vcpus", "1"],
                "--vcpus is decided",
            ),
            (vec!["start", "--cold", "i", "--count", "0"], "--count is 0"),
            (vec!["density", "--cold", "i", "--step", "0"], "--step is 0"),
            (
                vec!["density", "--cold", "i", "--quiet", "0"],
                "--quiet is 0",
            ),
            (
                vec!["start", "--cold", "i", "--concurrency", "1,x"],
                "\"x\" is no number",
            ),
            (
                vec!["start", "--cold", "i", "--concurrency", "0"],
                "starts nothing",
            ),
            (vec!["start", "--cold", "i", "--peer", "xen"], "not known"),
        ] {
            let error = parse(&args).unwrap_err();
            assert!(error.contains(words), "{args:?}: {error}");
        }
    }
}
