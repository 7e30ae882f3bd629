//! rundlet-vmm: parse, run, and say how it ended.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use rundlet_vmm::cli::{self, Boot, Cli, Clone, Command};
use rundlet_vmm::jail::seccomp::Duty;
use rundlet_vmm::jail::{Filters, JailError, JailSpec};
use rundlet_vmm::lifeline;
use rundlet_vmm::outcome::Outcome;
use rundlet_vmm::sandbox::{self, Running, SandboxError, Ties};
use rundlet_vmm::spec::{CloneSpec, SandboxSpec};
use rundlet_vmm::template::Template;
use rundlet_vmm::timeline::Timeline;
use rundlet_vmm::wire::{self, Event, emit};
use rundlet_vmm::zygote::channel::Channel;
use rundlet_vmm::zygote::child::{Child, Settled};
use rundlet_vmm::zygote::order::Wanted;
use rundlet_vmm::zygote::{Makes, Served, Zygote};
use rustix::thread::set_name;

/// Exit code of a bad spec or command line.
const USAGE: u8 = 2;

/// What the kernel adds to a sandbox's badness when memory is short, of 1000, proc_pid_oom_score_adj(5).
const EXPENDABLE: i16 = 500;

fn main() -> ExitCode {
    let timeline = Timeline::start();
    // The queue crate logs what a guest can cause as often as it likes.
    let filter = env_logger::Env::default().default_filter_or("info,virtio_queue=off");
    env_logger::Builder::from_env(filter)
        .format_target(false)
        .init();
    rundlet_jail::panic::without_backtrace();
    be_expendable();
    let cli: Cli = match parse_arguments() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    match cli.command {
        Command::Boot(arguments) => boot(arguments, &timeline),
        Command::Clone(arguments) => clone(arguments, &timeline),
        Command::Zygote(arguments) => zygote(&arguments),
    }
    .unwrap_or_else(|error| refuse(&error))
}

/// A host short of memory ends a sandbox before what serves all of them. Who started us may be exempt (a daemon whose unit
/// says so), and so would we: a sandbox over its cgroup's limit would then stand still for ever instead of being killed.
fn be_expendable() {
    const PATH: &str = "/proc/self/oom_score_adj";
    let now = fs::read_to_string(PATH);
    let now = now.map(|text| text.trim().parse::<i16>().unwrap_or(i16::MIN));
    let done = match now {
        Ok(now) if now >= EXPENDABLE => Ok(()),
        _ => fs::write(PATH, EXPENDABLE.to_string()),
    };
    if let Err(error) = done {
        log::warn!("{PATH}: {error}");
    }
}

fn boot(arguments: Boot, timeline: &Timeline) -> anyhow::Result<ExitCode> {
    let spec = wire::Spec::parse(&read_spec(&arguments.spec)?)?;
    let spec = SandboxSpec::try_from(spec)?;
    no_jail(spec.jail.as_ref())?;
    timeline.mark("spec");
    let ties = ties(arguments.lifeline, arguments.control)?;
    Ok(run(sandbox::boot(&spec, &ties, timeline), timeline))
}

fn clone(arguments: Clone, timeline: &Timeline) -> anyhow::Result<ExitCode> {
    let spec = wire::CloneSpec::parse(&read_spec(&arguments.spec)?)?;
    let spec = CloneSpec::try_from(spec)?;
    no_jail(spec.jail.as_ref())?;
    let ties = ties(arguments.lifeline, arguments.control)?;
    let running = Template::open(&arguments.template)
        .map_err(SandboxError::from)
        .and_then(|template| {
            timeline.mark("template");
            sandbox::restore(&template, &spec, &ties, timeline)
        });
    if running.is_ok() {
        emit(&timeline.event());
    }
    Ok(run(running, timeline))
}

/// Returns in the zygote and in each of its children.
fn zygote(arguments: &cli::Zygote) -> anyhow::Result<ExitCode> {
    let channel = Channel::adopt(arguments.socket)
        .with_context(|| format!("--socket: cannot use descriptor {}", arguments.socket))?;
    set_name(c"rundlet-zygote")?;
    let template = arguments.template.as_deref().map(Template::open);
    let template = match template.transpose() {
        Ok(template) => template,
        Err(error) => return Ok(end(&error.outcome())),
    };
    let makes = match template {
        Some(_) => Makes::Clones,
        None => Makes::Boots,
    };
    match Zygote::new(channel, makes).and_then(Zygote::serve) {
        Ok(Served::Closed) => Ok(ExitCode::SUCCESS),
        Ok(Served::Child(child)) => become_sandbox(*child, template.as_ref()),
        Err(error) => Ok(end(&Outcome::Error(format!(
            "{:#}",
            anyhow::Error::new(error)
        )))),
    }
}

fn become_sandbox(child: Child, template: Option<&Template>) -> anyhow::Result<ExitCode> {
    let timeline = child.timeline();
    let Settled {
        wanted,
        ties,
        console,
    } = child.settle().context("a sandbox cannot settle")?;
    let running = match (&wanted, template) {
        (Wanted::Clone(spec), Some(template)) => {
            let running = sandbox::restore(template, spec, &ties, &timeline);
            if running.is_ok() {
                emit(&timeline.event());
            }
            running
        }
        (Wanted::Boot(spec), _) => sandbox::boot(spec, &ties, &timeline),
        (Wanted::Clone(_), None) => anyhow::bail!("a clone needs a template"),
    };
    drop((ties, console));
    Ok(run(running, &timeline))
}

fn ties(lifeline: Option<i32>, control: Option<PathBuf>) -> Result<Ties, SandboxError> {
    let lifeline = lifeline.map(lifeline::inherited).transpose();
    let duty = match control {
        Some(_) => Duty::Capture,
        None => Duty::Run,
    };
    Ok(Ties {
        lifeline: lifeline.map_err(SandboxError::Lifeline)?,
        control,
        filters: Filters::compile(duty).map_err(JailError::from)?,
    })
}

/// The namespaces of a jail are older than who is in it.
fn no_jail(jail: Option<&JailSpec>) -> anyhow::Result<()> {
    anyhow::ensure!(jail.is_none(), "jail: only a zygote's child can have one");
    Ok(())
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

fn read_spec(path: &Path) -> anyhow::Result<Vec<u8>> {
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
    Ok(json)
}

/// Runs a sandbox to its end and says how it ended.
fn run(made: Result<Running, SandboxError>, timeline: &Timeline) -> ExitCode {
    let outcome = match made {
        Ok(running) => {
            log::debug!("{}", timeline.event().to_line());
            running.run()
        }
        Err(error) => match error.outcome() {
            Some(outcome) => outcome,
            None => return refuse(&error.into()),
        },
    };
    end(&outcome)
}

fn end(outcome: &Outcome) -> ExitCode {
    let message = outcome.to_string();
    match outcome {
        Outcome::Error(_) | Outcome::TemplateStale(_) | Outcome::TemplateDamaged(_) => {
            log::error!("{message}");
        }
        _ => log::info!("{message}"),
    }
    emit(&Event::Exit {
        reason: outcome.reason(),
        message,
    });
    ExitCode::from(outcome.exit_code())
}
