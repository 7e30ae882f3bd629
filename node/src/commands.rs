//! The verbs of the command line. Each prints its result or one error, and returns the exit code.

pub(crate) mod daemon;
pub(crate) mod serve;

use std::error::Error;
use std::time::Instant;

use rundlet_node::error::chain;
use rundlet_node::host::config::Config;
use rundlet_node::image::{Store, StoreError, import};
use rundlet_node::sandbox::{Evidence, printable};
use rundlet_node::template::{TemplateError, Templates, build};
use rundlet_node::{bench, doctor, fleet, places, pool, run as recipe};

use crate::cli;

/// Exit code of a failed verb.
const FAILED: u8 = 1;

/// Exit code for bad usage, as of most tools; `run` has its own, since 2 may be its command's.
pub(crate) const USAGE: u8 = 2;

/// Begins to log what RUST_LOG says, or else `filter`.
pub(crate) fn log(filter: &str) {
    let filter = env_logger::Env::default().default_filter_or(filter);
    env_logger::Builder::from_env(filter).init();
}

pub(crate) fn run(args: cli::Run, since: Instant) -> u8 {
    let host = daemon::host(&args);
    let request = match recipe::Request::try_from(args) {
        Ok(request) => request,
        Err(error) => {
            eprintln!("rundlet: {error}");
            return recipe::OUR_ERROR;
        }
    };
    match host {
        Ok(Some(client)) => return daemon::run(&client, request),
        Ok(None) => {}
        Err(code) => return code,
    }
    match recipe::run(&request, since) {
        Ok(code) => {
            if code == recipe::TIMED_OUT && request.timeout.is_some() {
                log::info!("the command's time is over");
            }
            code
        }
        Err(error) => {
            eprintln!("rundlet: {}", chain(&error));
            show(&error.evidence);
            error.code()
        }
    }
}

fn show(evidence: &Evidence) {
    for (what, lines) in [
        ("the warm-up", &evidence.warm_up),
        ("the guest's console", &evidence.console),
        ("rundlet-vmm", &evidence.vmm),
        ("vhost-blk-ro", &evidence.backend),
    ] {
        if !lines.is_empty() {
            eprintln!("last lines of {what}:");
            for line in lines {
                eprintln!("  | {line}");
            }
        }
    }
}

pub(crate) fn fleet(args: cli::Fleet) -> u8 {
    let request = match fleet::Request::try_from(args) {
        Ok(request) => request,
        Err(error) => {
            eprintln!("rundlet: {error}");
            return recipe::OUR_ERROR;
        }
    };
    match fleet::run(&request) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("rundlet: {}", chain(&error));
            show(&error.evidence);
            error.code()
        }
    }
}

/// `command` is what follows `rundlet bench`.
pub(crate) fn bench(verb: cli::BenchVerb, command: Vec<String>) -> u8 {
    let request = match verb {
        cli::BenchVerb::Start(start) => start.request(command),
        cli::BenchVerb::Density(density) => density.request(command),
        cli::BenchVerb::Cgroup(cgroup) => {
            return match cgroup.plan() {
                Ok(plan) => told(bench::run_cgroup(&plan)),
                Err(error) => {
                    eprintln!("rundlet: {error}");
                    USAGE
                }
            };
        }
        cli::BenchVerb::Node(node) => {
            return match node.plan(command) {
                Ok(plan) => told(bench::run_node(&plan)),
                Err(error) => {
                    eprintln!("rundlet: {error}");
                    USAGE
                }
            };
        }
        cli::BenchVerb::Report(merge) => {
            return told(bench::merge(&merge.files, &merge.output()));
        }
    };
    match request {
        Ok(request) => told(bench::run(&request)),
        Err(error) => {
            eprintln!("rundlet: {error}");
            USAGE
        }
    }
}

fn told(result: Result<(), bench::BenchError>) -> u8 {
    match result {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("rundlet: {}", chain(&error));
            error.code()
        }
    }
}

pub(crate) fn image(args: cli::Image) -> u8 {
    let result = match args.verb {
        cli::ImageVerb::Import(args) => image_import(&args),
        cli::ImageVerb::List(args) => image_list(&args),
        cli::ImageVerb::Remove(args) => image_remove(&args),
    };
    match result {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("rundlet: {}", chain(&*error));
            FAILED
        }
    }
}

fn image_import(args: &cli::Import) -> Result<(), Box<dyn Error>> {
    let store = Store::open(&places::store())?;
    let imported = import::import(&store, &args.path, &args.name)?;
    for loss in &imported.losses {
        eprintln!("rundlet: note: {loss}");
    }
    let reference = imported.reference;
    println!(
        "{} {} {} bytes",
        reference.name, reference.digest, reference.bytes
    );
    Ok(())
}

fn image_list(args: &cli::List) -> Result<(), Box<dyn Error>> {
    let all = Store::open(&places::store())?.list()?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    println!("{:<40} {:<19} {:>10}  SOURCE", "NAME", "DIGEST", "MIB");
    for it in all {
        // Enough of the digest to tell images apart: sha256- and twelve digits.
        let digest = it.digest.get(..19).unwrap_or(&it.digest);
        let mib = it.bytes.div_ceil(1024 * 1024);
        println!(
            "{:<40} {digest:<19} {mib:>10}  {}",
            it.name.to_string(),
            it.source
        );
    }
    Ok(())
}

fn image_remove(args: &cli::Remove) -> Result<(), Box<dyn Error>> {
    match Store::open(&places::store())?.remove(&args.name) {
        Err(StoreError::InUse { name, pids }) if daemon::is_among(&pids) => {
            daemon::remove_from_store("images", &name.to_string())?;
        }
        other => drop(other?),
    }
    println!("removed {}", args.name);
    Ok(())
}

pub(crate) fn template(args: cli::Template) -> u8 {
    let result = match args.verb {
        cli::TemplateVerb::Build(args) => return template_build(*args),
        cli::TemplateVerb::List(args) => template_list(&args),
        cli::TemplateVerb::Inspect(args) => template_inspect(&args),
        cli::TemplateVerb::Check(args) => template_check(&args),
        cli::TemplateVerb::Remove(args) => template_remove(&args),
    };
    match result {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("rundlet: {}", chain(&*error));
            FAILED
        }
    }
}

fn template_build(args: cli::Build) -> u8 {
    let request = match build::Request::try_from(args) {
        Ok(request) => request,
        Err(error) => {
            eprintln!("rundlet: {error}");
            return USAGE;
        }
    };
    match build::build(&request) {
        Ok(record) => {
            println!("{} {}", record.name, record.id);
            0
        }
        Err(error) => {
            eprintln!("rundlet: {}", chain(&error));
            show(&error.evidence);
            match error.code() {
                recipe::OUR_ERROR => FAILED,
                code => code,
            }
        }
    }
}

fn templates() -> Result<Templates, Box<dyn Error>> {
    Ok(Templates::of(&Store::open(&places::store())?))
}

fn template_list(args: &cli::TemplateList) -> Result<(), Box<dyn Error>> {
    let all = templates()?.list()?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    println!(
        "{:<30} {:<30} {:>6} {:>5} {:>10} {:>5}  WARM-UP",
        "NAME", "IMAGE", "MEMORY", "VCPUS", "DISK MIB", "USERS"
    );
    for it in all {
        let recipe = &it.record.recipe;
        let warm_up = recipe.warm_up.as_ref().map(|it| it.argv.join(" "));
        let warm_up = warm_up.map(|it| printable(it.as_bytes()));
        println!(
            "{:<30} {:<30} {:>6} {:>5} {:>10} {:>5}  {}",
            it.record.name.to_string(),
            recipe.image.to_string(),
            recipe.memory_mib,
            recipe.vcpus,
            it.allocated_bytes.div_ceil(1024 * 1024),
            it.used_by.len(),
            warm_up.as_deref().unwrap_or("-")
        );
    }
    Ok(())
}

fn template_inspect(args: &cli::Inspect) -> Result<(), Box<dyn Error>> {
    let inspection = templates()?.inspect(&args.name)?;
    println!("{}", serde_json::to_string_pretty(&inspection)?);
    Ok(())
}

fn template_check(args: &cli::TemplateCheck) -> Result<(), Box<dyn Error>> {
    let store = Store::open(&places::store())?;
    rundlet_node::template::check(&store, &args.name)?;
    println!("{} fits", args.name);
    Ok(())
}

fn template_remove(args: &cli::TemplateRemove) -> Result<(), Box<dyn Error>> {
    match templates()?.remove(&args.name) {
        Err(TemplateError::InUse { name, pids }) if daemon::is_among(&pids) => {
            daemon::remove_from_store("templates", &name.to_string())?;
        }
        other => other?,
    }
    println!("removed {}", args.name);
    Ok(())
}

pub(crate) fn pool(args: &cli::Pool) -> u8 {
    let keep = || -> Result<(), Box<dyn Error>> {
        Ok(pool::keep(&Config::load(args.config.as_deref())?.cgroup)?)
    };
    match keep() {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("rundlet: {}", chain(&*error));
            FAILED
        }
    }
}

pub(crate) fn doctor(args: &cli::Doctor) -> u8 {
    let report = doctor::examine();
    if args.json {
        match serde_json::to_string_pretty(&report) {
            Ok(json) => println!("{json}"),
            Err(error) => eprintln!("rundlet: cannot write the report: {error}"),
        }
    } else {
        print!("{}", report.text());
    }
    if report.usable { 0 } else { FAILED }
}
