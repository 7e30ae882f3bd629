//! rundlet-vmm: parse, run, and say how it ended.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use rundlet_vmm::cli::{Boot, Cli, Command};
use rundlet_vmm::lifeline;
use rundlet_vmm::outcome::Outcome;
use rundlet_vmm::sandbox::{self, SandboxError, Ties};
use rundlet_vmm::spec::SandboxSpec;
use rundlet_vmm::timeline::Timeline;
use rundlet_vmm::wire::{self, Event, emit};

/// Exit code of a bad spec or command line.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let timeline = Timeline::start();
    // The queue crate logs what a guest can cause as often as it likes.
    let filter = env_logger::Env::default().default_filter_or("info,virtio_queue=off");
    env_logger::Builder::from_env(filter)
        .format_target(false)
        .init();
    let cli: Cli = match parse_arguments() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let Command::Boot(boot) = cli.command;
    match read_spec(&boot.spec) {
        Ok(spec) => run(&spec, boot, &timeline),
        Err(error) => refuse(&error),
    }
}

/// A bad spec or command line: one message, and nothing was started.
fn refuse(error: &anyhow::Error) -> ExitCode {
    let message = format!("{error:#}");
    log::error!("{message}");
    emit(&Event::Exit {
        reason: "error",
        message,
    });
    ExitCode::from(USAGE)
}

/// argh's own entry exits with 1 for a bad command line, which here means something else.
fn parse_arguments() -> Result<Cli, ExitCode> {
    let args: Vec<String> = std::env::args_os()
        .map(|arg| arg.to_string_lossy().into_owned())
        .collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (name, rest) = args.split_first().unwrap_or((&"rundlet-vmm", &[]));
    let name = Path::new(name)
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or(name);
    <Cli as argh::FromArgs>::from_args(&[name], rest).map_err(|early| match early.status {
        Ok(()) => {
            println!("{}", early.output);
            ExitCode::SUCCESS
        }
        Err(()) => {
            eprintln!("{}\nRun {name} --help for more information.", early.output);
            ExitCode::from(USAGE)
        }
    })
}

fn read_spec(path: &Path) -> anyhow::Result<SandboxSpec> {
    let source: Box<dyn Read> = if path == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        let file =
            File::open(path).with_context(|| format!("--spec: cannot open {}", path.display()))?;
        Box::new(file)
    };
    let mut json = Vec::new();
    source
        .take(wire::MAX_SPEC_BYTES + 1)
        .read_to_end(&mut json)
        .with_context(|| format!("--spec: cannot read {}", path.display()))?;
    anyhow::ensure!(
        u64::try_from(json.len())? <= wire::MAX_SPEC_BYTES,
        "--spec: {} is longer than {} bytes",
        path.display(),
        wire::MAX_SPEC_BYTES
    );
    Ok(wire::Spec::parse(&json)?.try_into()?)
}

fn run(spec: &SandboxSpec, boot: Boot, timeline: &Timeline) -> ExitCode {
    timeline.mark("spec");
    let lifeline = match boot.lifeline.map(lifeline::inherited).transpose() {
        Ok(lifeline) => lifeline,
        Err(error) => return refuse(&SandboxError::Lifeline(error).into()),
    };
    let ties = Ties {
        lifeline,
        control: boot.control,
    };
    let outcome = match sandbox::boot(spec, &ties, timeline) {
        Ok(running) => {
            log::debug!("{}", timeline.event().to_line());
            running.run()
        }
        Err(error) if error.blames_spec() => return refuse(&error.into()),
        Err(error) => Outcome::Error(format!("{:#}", anyhow::Error::new(error))),
    };
    let message = outcome.to_string();
    match outcome {
        Outcome::Error(_) => log::error!("{message}"),
        _ => log::info!("{message}"),
    }
    emit(&Event::Exit {
        reason: outcome.reason(),
        message,
    });
    ExitCode::from(outcome.exit_code())
}
