//! Binary `rundlet`: parses the command line, calls the library, prints one error, ends with its code.

mod cli;
mod commands;

use std::env;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use argh::FromArgs;
use rundlet_node::bench::midwife;
use rundlet_node::run::OUR_ERROR;
use rundlet_node::sandbox::janitor;

use cli::{Cli, Verb};
use commands::USAGE;

fn main() -> ExitCode {
    let since = Instant::now();
    let args: Vec<String> = env::args_os()
        .map(|arg| arg.to_string_lossy().into_owned())
        .skip(1)
        .collect();
    // A daemon is told by its configuration what to log.
    if args.first().is_none_or(|verb| verb != "serve") {
        commands::log("error");
    }
    if args.first().is_some_and(|arg| arg == janitor::COMMAND) {
        return run_janitor(args.get(1).map(Path::new), args.get(2).map(Path::new));
    }
    if args.first().is_some_and(|arg| arg == midwife::COMMAND) {
        return match midwife::serve() {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    let code = match parse(&args) {
        Ok(Cli { version: true, .. }) => {
            println!("rundlet {}", env!("CARGO_PKG_VERSION"));
            0
        }
        Ok(Cli { verb, .. }) => match verb {
            Some(Verb::Run(args)) => commands::run(*args, since),
            Some(Verb::Create(args)) => commands::daemon::create(*args),
            Some(Verb::Exec(args)) => commands::daemon::exec(args),
            Some(Verb::Ps(args)) => commands::daemon::ps(&args),
            Some(Verb::Inspect(args)) => commands::daemon::inspect(&args),
            Some(Verb::Logs(args)) => commands::daemon::logs(&args),
            Some(Verb::Stop(args)) => commands::daemon::stop(&args),
            Some(Verb::Kill(args)) => commands::daemon::kill(&args),
            Some(Verb::Rm(args)) => commands::daemon::rm(&args),
            Some(Verb::Events(args)) => commands::daemon::events(&args),
            Some(Verb::Serve(args)) => commands::serve::serve(&args),
            Some(Verb::Image(args)) => commands::image(args),
            Some(Verb::Template(args)) => commands::template(*args),
            Some(Verb::Fleet(args)) => commands::fleet(args),
            Some(Verb::Bench(bench)) => {
                commands::bench(bench.verb, args.into_iter().skip(1).collect())
            }
            Some(Verb::Pool(args)) => commands::pool(&args),
            Some(Verb::Doctor(args)) => commands::doctor(&args),
            None => {
                eprintln!("rundlet: what to do is missing; `rundlet --help` lists it");
                USAGE
            }
        },
        Err(code) => code,
    };
    ExitCode::from(code)
}

/// Prints help or the error itself.
fn parse(args: &[String]) -> Result<Cli, u8> {
    let args = cli::split_switches(args);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    Cli::from_args(&["rundlet"], &args).map_err(|early| match early.status {
        Ok(()) => {
            println!("{}", early.output);
            0
        }
        Err(()) => {
            eprintln!("rundlet: {}", early.output.trim_end());
            if matches!(args.first(), Some(&"run" | &"exec" | &"fleet")) {
                OUR_ERROR
            } else {
                USAGE
            }
        }
    })
}

fn run_janitor(directory: Option<&Path>, cgroup: Option<&Path>) -> ExitCode {
    let Some(directory) = directory else {
        return ExitCode::from(USAGE);
    };
    let line = std::io::stdin();
    match line.as_fd().try_clone_to_owned() {
        Ok(line) if janitor::run(&line, directory, cgroup).is_ok() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
