//! The verbs that a daemon carries out.

use std::env;
use std::error::Error;
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rundlet_node::client::session::{self, SessionError};
use rundlet_node::client::{self, Client, ClientError, escape};
use rundlet_node::error::chain;
use rundlet_node::host::model::{CreateSandbox, Source, Summary};
use rundlet_node::places;
use rundlet_node::run::{OUR_ERROR, Request};
use rundlet_node::sandbox::printable;

use super::{FAILED, USAGE};
use crate::cli::{self, Daemon, UsageError};

/// Names of places that a daemon has its own of.
const OUR_PLACES: [&str; 4] = [
    places::STORE,
    places::GUEST,
    places::LIBEXEC,
    places::RUNTIME,
];

/// Phases of sandboxes that live.
const LIVING: [&str; 4] = ["creating", "ready", "running", "stopping"];

fn connect() -> Result<Client, ClientError> {
    Client::new(&client::socket())
}

/// Whether the daemon is one of these processes: what they hold is in its store then, and it may let go of it.
pub(super) fn is_among(pids: &[u32]) -> bool {
    let health = connect().and_then(|client| client.health());
    health.is_ok_and(|health| pids.contains(&health.pid))
}

/// `kind` as [`Client::remove_from_store`] takes it.
pub(super) fn remove_from_store(kind: &str, name: &str) -> Result<(), ClientError> {
    connect()?.remove_from_store(kind, name)
}

/// The daemon that hosts a run; none if we do. An exit code where it cannot be so.
pub(super) fn host(args: &cli::Run) -> Result<Option<Client>, u8> {
    let ours = args.ours_alone();
    let fail = |error: &(dyn Error + 'static)| {
        eprintln!("rundlet: {}", chain(error));
        OUR_ERROR
    };
    match (args.daemon(), ours) {
        (Daemon::Never, _) => return Ok(None),
        (Daemon::Always, Some(option)) => return Err(fail(&UsageError::OursAlone { option })),
        (Daemon::Auto, Some(option)) => {
            log::info!("no daemon is asked: {option} cannot be done by one");
            return Ok(None);
        }
        (Daemon::Auto, None) => {
            let told = OUR_PLACES.iter().find(|name| env::var_os(name).is_some());
            // Who names the socket as well wants the daemon.
            if let Some(name) = told.filter(|_| env::var_os(client::SOCKET).is_none()) {
                log::info!("no daemon is asked: {name} is set, and a daemon has its own");
                return Ok(None);
            }
        }
        (Daemon::Always, None) => {}
    }
    let client = connect().map_err(|error| fail(&error))?;
    match (client.health(), args.daemon()) {
        (Ok(health), _) => {
            let socket = client::socket();
            log::info!(
                "the daemon {} at {} hosts the sandbox",
                health.pid,
                socket.display()
            );
            Ok(Some(client))
        }
        (Err(error), Daemon::Always) => Err(fail(&error)),
        (Err(error), _) => {
            log::info!("this process hosts the sandbox: {}", chain(&error));
            Ok(None)
        }
    }
}

pub(super) fn run(client: &Client, request: Request) -> u8 {
    ended(session::run(client, request))
}

fn ended(result: Result<u8, SessionError>) -> u8 {
    result.unwrap_or_else(|error| {
        eprintln!("rundlet: {}", chain(&error));
        error.code()
    })
}

pub(crate) fn exec(args: cli::Exec) -> u8 {
    let id = args.id.clone();
    let wish = match session::Wish::try_from(args) {
        Ok(wish) => wish,
        Err(error) => {
            eprintln!("rundlet: {error}");
            return OUR_ERROR;
        }
    };
    let result = connect().map_err(SessionError::from);
    ended(result.and_then(|client| session::exec(&client, &id, wish)))
}

pub(crate) fn create(args: cli::Create) -> u8 {
    let key = args.key.clone();
    let wish = match CreateSandbox::try_from(args) {
        Ok(wish) => wish,
        Err(error) => {
            eprintln!("rundlet: {error}");
            return USAGE;
        }
    };
    told(|client| {
        let detail = client.create(&wish, key.as_deref())?;
        println!("{}", detail.summary.id);
        Ok(())
    })
}

/// Asks the daemon; the exit code.
fn told(ask: impl FnOnce(&Client) -> Result<(), Box<dyn Error>>) -> u8 {
    let result = connect().map_err(Into::into);
    match result.and_then(|client| ask(&client)) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("rundlet: {}", chain(&*error));
            FAILED
        }
    }
}

/// Asks for each of them, whatever became of the others.
fn each(ids: &[String], ask: impl Fn(&Client, &str) -> Result<(), ClientError>) -> u8 {
    if ids.is_empty() {
        eprintln!("rundlet: ids of sandboxes are missing; `rundlet ps` shows them");
        return USAGE;
    }
    let client = match connect() {
        Ok(client) => client,
        Err(error) => {
            eprintln!("rundlet: {}", chain(&error));
            return FAILED;
        }
    };
    let mut code = 0;
    for id in ids {
        match ask(&client, id) {
            Ok(()) => println!("{id}"),
            Err(error) => {
                eprintln!("rundlet: {}", chain(&error));
                code = FAILED;
            }
        }
    }
    code
}

pub(crate) fn ps(args: &cli::Ps) -> u8 {
    let mut query: Vec<String> = args
        .label
        .iter()
        .map(|label| format!("label={}", escape(label)))
        .collect();
    if !args.all {
        query.extend(LIVING.map(|phase| format!("phase={phase}")));
    }
    told(|client| {
        let all = client.list(&query.join("&"))?;
        if args.json {
            println!("{}", serde_json::to_string_pretty(&all)?);
            return Ok(());
        }
        println!(
            "{:<12} {:<9} {:>8}  {:<32} LABELS",
            "ID", "PHASE", "AGE", "SOURCE"
        );
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        for it in &all {
            println!("{}", line(it, now));
        }
        Ok(())
    })
}

fn line(it: &Summary, now: Duration) -> String {
    let phase = serde_json::to_value(it.phase).unwrap_or_default();
    let (kind, name) = match &it.source {
        Source::Image(name) => ("image", name),
        Source::Template(name) => ("template", name),
    };
    let labels: Vec<String> = it.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let age = now.saturating_sub(Duration::from_millis(it.created_ms));
    // Labels are anybody's.
    format!(
        "{:<12} {:<9} {:>8}  {:<32} {}",
        it.id,
        phase.as_str().unwrap_or_default(),
        short(age),
        format!("{kind} {name}"),
        printable(labels.join(" ").as_bytes())
    )
}

/// A length of time in its largest unit.
fn short(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86400),
    }
}

pub(crate) fn inspect(args: &cli::InspectSandbox) -> u8 {
    told(|client| {
        let detail = client.inspect(&args.id)?;
        println!("{}", serde_json::to_string_pretty(&detail)?);
        Ok(())
    })
}

pub(crate) fn logs(args: &cli::Logs) -> u8 {
    let follow = if args.follow { "?follow=true" } else { "" };
    stream(&format!("/v1/sandboxes/{}/logs{follow}", escape(&args.id)))
}

pub(crate) fn events(args: &cli::Events) -> u8 {
    let since = args.since.map(|since| format!("?since={since}"));
    stream(&format!("/v1/events{}", since.unwrap_or_default()))
}

fn stream(path: &str) -> u8 {
    told(|client| match client.stream(path, io::stdout().lock()) {
        // Whoever read it has heard enough.
        Err(ClientError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    })
}

pub(crate) fn stop(args: &cli::Stop) -> u8 {
    each(&args.id, |client, id| client.stop(id, args.grace))
}

pub(crate) fn kill(args: &cli::Kill) -> u8 {
    each(&args.id, Client::kill)
}

pub(crate) fn rm(args: &cli::Rm) -> u8 {
    each(&args.id, |client, id| client.remove(id, args.force))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rundlet_node::host::model::Phase;

    #[test]
    fn a_sandbox_is_one_line_whatever_its_labels_are() {
        let summary = Summary {
            id: "0123456789ab".into(),
            phase: Phase::Running,
            reason: None,
            source: Source::Template("py:latest".into()),
            labels: [("a".to_owned(), "\x1b[2J\n".to_owned())].into(),
            created_ms: 1000,
            ended_ms: None,
        };
        let line = line(&summary, Duration::from_secs(301));
        assert!(
            line.starts_with("0123456789ab running      5 min  template py:latest"),
            "{line}"
        );
        assert!(!line.contains(['\x1b', '\n']), "{line}");
    }

    #[test]
    fn ages_are_short() {
        for (seconds, words) in [
            (0, "0 s"),
            (119, "119 s"),
            (7199, "119 min"),
            (200_000, "2 d"),
        ] {
            assert_eq!(short(Duration::from_secs(seconds)), words);
        }
    }
}
