//! A host without an API, for tests that kill it: a line of JSON on stdin is a request, a line on stdout its
//! answer, in whatever order they are done. The end of stdin is the end of the daemon.
//!
//! `RUNDLET_DIE_AT=<step>` has it killed at that step of its first start.

// A program of tests: a panic is its way to say that they are wrong.
#![allow(clippy::unwrap_used)]

mod pool;

use std::collections::HashMap;
use std::env;
use std::io::{self, BufRead, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rundlet_node::error::chain;
use rundlet_node::host::config::Config;
use rundlet_node::host::{Filter, Host, HostError, OpenCommand};
use rundlet_node::sandbox::janitor;
use rundlet_protocol::ExecSpec;
use rustix::process::{Signal, getpid, kill_process};
use serde_json::{Value, json};

use pool::Pool;

/// The longest that anything here may take.
const SOON: Duration = Duration::from_secs(20);

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    if let [command, directory] = &args[..] {
        // What this process starts in a directory of its own, a template to be built, has a janitor: this program again.
        assert_eq!(command, janitor::COMMAND);
        let line = io::stdin().as_fd().try_clone_to_owned().unwrap();
        return janitor::run(&line, directory.as_ref(), None).unwrap();
    }
    let filter = env_logger::Env::default().default_filter_or("warn");
    env_logger::Builder::from_env(filter).init();
    let config = config();
    let root = config.cgroup.root.clone();
    let pool = Pool::open(&root, config.cgroup.slots).unwrap();
    let host = match Host::open_on(&config, Arc::new(pool)) {
        Ok(host) => host,
        Err(error) => {
            say(&json!({"open": {"error": chain(&error)}}));
            std::process::exit(1);
        }
    };
    if let Some(step) = env::var_os("RUNDLET_DIE_AT") {
        host.observe(Arc::new(move |at, _, _| {
            if step == at {
                kill_process(getpid(), Signal::KILL).unwrap();
                thread::sleep(SOON);
            }
        }));
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut events = host.watch(Some(0));
    runtime.spawn(async move {
        while let Some(event) = events.recv().await {
            say(&json!({ "event": event }));
        }
    });
    say(&json!({"open": {"taken": pool::taken(&root)}}));
    let held: Arc<Mutex<HashMap<String, OpenCommand>>> = Arc::default();
    let mut at_work = Vec::new();
    for line in io::stdin().lock().lines().map_while(Result::ok) {
        let request: Value = serde_json::from_str(&line).unwrap();
        let (host, held, runtime) = (host.clone(), Arc::clone(&held), runtime.handle().clone());
        at_work.retain(|thread: &thread::JoinHandle<()>| !thread.is_finished());
        at_work.push(thread::spawn(move || {
            let answer = answer(&host, &held, &runtime, &request);
            say(&json!({"tag": request["tag"], "answer": answer}));
        }));
    }
    for thread in at_work {
        thread.join().unwrap();
    }
    drop(held);
    host.close();
}

fn config() -> Config {
    let place = |name: &str| PathBuf::from(env::var_os(name).unwrap());
    let number =
        |name: &str, default: u32| env::var(name).map_or(default, |value| value.parse().unwrap());
    let mut config = Config::load(None).unwrap();
    config.run = place("RUNDLET_RUNTIME");
    config.store = place("RUNDLET_STORE");
    config.cgroup.root = config.run.join("pool");
    config.cgroup.slots = number("RUNDLET_SLOTS", 64);
    config.limits.starts_at_once = 8;
    config.limits.ended_records = number("RUNDLET_ENDED", 100);
    config.limits.first_command_s = number("RUNDLET_FIRST_COMMAND", 60).into();
    config.jail = None;
    config
}

fn answer(
    host: &Host,
    held: &Mutex<HashMap<String, OpenCommand>>,
    runtime: &tokio::runtime::Handle,
    request: &Value,
) -> Value {
    let id = request["id"].as_str().unwrap_or_default();
    let answer = match request["do"].as_str().unwrap() {
        "create" => create(host, runtime, request),
        "list" => Ok(json!(host.list(&Filter::default()))),
        "inspect" => host.inspect(id).map(|it| json!(it)),
        "wait" => host.wait(id, SOON).map(|it| json!(it)),
        "run" => run(host, id, request),
        "open" => host.open_command(id).map(|command| {
            let env = json!(command.env);
            held.lock().unwrap().insert(id.to_owned(), command);
            env
        }),
        "let-go" => {
            held.lock().unwrap().remove(id);
            Ok(Value::Null)
        }
        "stop" => host.stop(id, SOON).map(|()| Value::Null),
        "kill" => host.kill(id).map(|()| Value::Null),
        "remove" => host
            .remove(id, request["force"] == true)
            .map(|()| Value::Null),
        "close-lines" => {
            host.let_go();
            Ok(Value::Null)
        }
        "stats" => Ok(stats(host)),
        other => panic!("{other}"),
    };
    answer.unwrap_or_else(|error| json!({"error": {"text": chain(&error), "kind": kind(&error)}}))
}

fn create(
    host: &Host,
    runtime: &tokio::runtime::Handle,
    request: &Value,
) -> Result<Value, HostError> {
    let permit = runtime.block_on(host.admit())?;
    let wish = serde_json::from_value(request["wish"].clone()).unwrap();
    let key = request["key"].as_str().map(Into::into);
    let created = host.create(permit, wish, key)?;
    Ok(json!({"detail": created.detail, "fresh": created.fresh}))
}

fn run(host: &Host, id: &str, request: &Value) -> Result<Value, HostError> {
    let argv = ["sh", "-c", request["script"].as_str().unwrap()];
    let spec = ExecSpec {
        argv: argv.map(Into::into).to_vec(),
        ..ExecSpec::default()
    };
    let stdin = request["stdin"].as_str().unwrap_or_default();
    let finished = host.run_command(id, spec, stdin.into(), SOON)?;
    Ok(json!({
        "code": finished.status.shell_code(),
        "stdout": String::from_utf8_lossy(&finished.stdout),
        "stderr": String::from_utf8_lossy(&finished.stderr),
        "truncated": finished.truncated,
    }))
}

fn stats(host: &Host) -> Value {
    let stats = host.stats();
    let backends: Vec<Value> = stats
        .backends
        .iter()
        .map(|it| json!({"pid": it.pid, "zygote": it.zygote, "sandboxes": it.sandboxes, "reads": it.figures.map(|it| it.reads)}))
        .collect();
    json!({
        "free": stats.pool.free,
        "slots": stats.pool.slots,
        "memory": stats.committed_memory_mib,
        "phases": stats.phases,
        "backends": backends,
        "refused": stats.starts.refused_total,
    })
}

fn kind(error: &HostError) -> &'static str {
    match error {
        HostError::Invalid { .. } => "invalid",
        HostError::NotFound { .. } => "not-found",
        HostError::WrongPhase { .. } => "wrong-phase",
        HostError::KeyReused { .. } => "key-reused",
        HostError::Full { .. } => "full",
        HostError::Late { .. } => "late",
        HostError::Start { .. } => "start",
        HostError::Ended { .. } => "ended",
        HostError::Agent(_) => "agent",
        HostError::Io(_) => "io",
        HostError::Closing => "closing",
    }
}

fn say(value: &Value) {
    let mut out = io::stdout().lock();
    // The test may have gone.
    let _ = writeln!(out, "{value}").and_then(|()| out.flush());
}
