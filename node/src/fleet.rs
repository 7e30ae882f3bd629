//! `rundlet fleet`: many clones of one template at once, a command in each, hosted in this process.
//!
//! Says one line of JSON for each command, and one for each round of starts, so that a script can tell how
//! it went without asking anybody.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rundlet_protocol::ExecSpec;
use serde::Serialize;

use crate::claim;
use crate::error::chain;
use crate::image::Store;
use crate::places;
use crate::run::watch::{News, Wire};
use crate::run::{Cause, Place, RunError, signals};
use crate::sandbox::{
    Cloned, Fleet, FleetError, FleetEvent, FleetSink, Member, MemberError, MemberInstants, Wish,
    ZygoteError,
};
use crate::template::{self, TemplateName};

/// What was asked for.
#[derive(Debug)]
pub struct Request {
    pub template: TemplateName,
    pub argv: Vec<String>,
    /// Clones of one round.
    pub count: usize,
    /// How many are started at a time.
    pub at_once: usize,
    /// For each command.
    pub timeout: Duration,
    /// Whether to say where the time of each start went.
    pub timeline: bool,
    /// Whether each line on stdin is another round: as many clones again, the command in all there are.
    pub stay: bool,
}

/// What is printed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Line<'a> {
    Started {
        ready: usize,
        failed: usize,
        /// From the first request to the last clone that was ready, microseconds.
        took_us: u64,
        zygote: Option<u32>,
        backend: u32,
    },
    Command(Ran<'a>),
    Failed {
        id: &'a str,
        error: String,
    },
    Event {
        what: String,
    },
}

#[derive(Debug, Serialize)]
struct Ran<'a> {
    id: &'a str,
    pid: u32,
    /// From the request to the renewed clone, microseconds.
    ready_us: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeline: Option<Timeline<'a>>,
    code: i32,
    stdout: String,
    stderr: String,
}

/// Where the time of a start went, microseconds. Each part counts from its own zero: ours from the wish,
/// the VMM's from when the zygote had the request, the guest's from the renewal's arrival.
#[derive(Debug, Serialize)]
struct Timeline<'a> {
    node_us: BTreeMap<&'static str, u64>,
    vmm_us: &'a BTreeMap<String, u64>,
    renewed_us: u64,
}

impl<'a> Timeline<'a> {
    fn of(instants: &'a MemberInstants) -> Self {
        let since = |instant: Instant| micros(instant.duration_since(instants.requested));
        Self {
            node_us: BTreeMap::from([
                ("forked", since(instants.forked)),
                ("running", since(instants.running)),
                ("ready", since(instants.ready)),
            ]),
            vmm_us: &instants.vmm_us,
            renewed_us: micros(instants.renewed),
        }
    }
}

/// Runs it: the highest exit code of the commands, 125 where a clone or its command failed.
///
/// # Errors
/// There is no fleet.
pub fn run(request: &Request) -> Result<u8, RunError> {
    let wire = Wire::open()?;
    let place = Place {
        store: Store::open(&places::store()).map_err(Cause::Store)?,
        runtime: places::runtime().map_err(Cause::Place)?,
    };
    let events: FleetSink = Arc::new(|event| say(&event_line(&event)));
    let fleet = start(&place, &wire, &request.template, &events)?;
    end_on_signal(wire);
    let mut members = Vec::new();
    let mut worst = round(request, &fleet, &mut members);
    if request.stay {
        for _ in io::stdin().lock().lines().map_while(Result::ok) {
            worst = worst.max(round(request, &fleet, &mut members));
        }
    }
    fleet.stop();
    drop(members);
    if let Err(error) = claim::sweep(&place.runtime) {
        log::warn!("{}", chain(&error));
    }
    Ok(worst)
}

/// A fleet of the template, which is built again, once, if it no longer fits.
pub(crate) fn start(
    place: &Place,
    wire: &Wire,
    name: &TemplateName,
    events: &FleetSink,
) -> Result<Fleet, RunError> {
    template::with_fitting(place, wire, name, |template| {
        let binding = template::binding_now(&place.store, &template.record)?;
        if binding != template.record.binding {
            let why = "it was made of another kernel or initrd than there is now";
            return Err(Cause::TemplateUnfit(why.into()).into());
        }
        let clone = Cloned {
            template,
            binding,
            controlled: false,
        };
        match Fleet::start(clone, &place.runtime, events) {
            Ok(fleet) => Ok(fleet),
            Err(FleetError::Zygote(ZygoteError::TemplateUnfit(why))) => {
                Err(Cause::TemplateUnfit(why).into())
            }
            Err(error) => Err(Cause::Fleet(error).into()),
        }
    })
}

/// The janitor does the cleaning then.
fn end_on_signal(wire: Wire) {
    let watch = move || {
        while let Some(news) = wire.next() {
            if let News::Signal(signal) = news
                && signals::asks_for_an_end(signal)
            {
                std::process::exit(signals::code(signal).into());
            }
        }
    };
    if let Err(error) = thread::Builder::new().name("signals".into()).spawn(watch) {
        log::warn!("signals are not listened to: {error}");
    }
}

/// Starts clones and runs the command in all there are; the worst code.
fn round(request: &Request, fleet: &Fleet, members: &mut Vec<Member>) -> u8 {
    let first = members.len();
    let began = Instant::now();
    let ids: Vec<String> = (first..first + request.count)
        .map(|number| format!("c{number:04}"))
        .collect();
    let started = at_once(&ids, request.at_once, |id| {
        fleet.clone_one(Wish {
            id: id.clone(),
            ..Wish::default()
        })
    });
    let took = began.elapsed();
    let mut worst = 0;
    let mut failed = 0;
    for (id, result) in ids.iter().zip(started) {
        match result {
            Ok(member) => members.push(member),
            Err(error) => {
                failed += 1;
                worst = worst.max(crate::run::OUR_ERROR);
                say(&start_failed(id, &error));
            }
        }
    }
    let pids = fleet.pids();
    say(&Line::Started {
        ready: members.len() - first,
        failed,
        took_us: micros(took),
        zygote: pids.zygote,
        backend: pids.backend,
    });
    let codes = at_once(members, request.at_once, |member| command(request, member));
    worst.max(codes.into_iter().max().unwrap_or(0))
}

fn command(request: &Request, member: &Member) -> u8 {
    let spec = ExecSpec {
        argv: request.argv.clone(),
        ..ExecSpec::default()
    };
    let instants = member.instants();
    match member.run(spec, request.timeout) {
        Ok(output) => {
            let code = output.status.shell_code();
            say(&Line::Command(Ran {
                id: member.id(),
                pid: member.pid(),
                ready_us: micros(instants.ready.duration_since(instants.requested)),
                timeline: request.timeline.then(|| Timeline::of(instants)),
                code,
                stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
                stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            }));
            u8::try_from(code).unwrap_or(crate::run::OUR_ERROR)
        }
        Err(error) => {
            say(&Line::Failed {
                id: member.id(),
                error: chain(&error),
            });
            crate::run::OUR_ERROR
        }
    }
}

/// Does `work` for every item on some threads; the results in the order of the items.
pub(crate) fn at_once<T: Sync, R: Send>(
    items: &[T],
    threads: usize,
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<Option<R>>> = Mutex::new(items.iter().map(|_| None).collect());
    thread::scope(|scope| {
        for _ in 0..threads.clamp(1, items.len().max(1)) {
            scope.spawn(|| {
                while let Some((index, item)) = {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    items.get(index).map(|item| (index, item))
                } {
                    let result = work(item);
                    let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(place) = results.get_mut(index) {
                        *place = Some(result);
                    }
                }
            });
        }
    });
    let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.into_iter().flatten().collect()
}

fn start_failed<'a>(id: &'a str, error: &MemberError) -> Line<'a> {
    Line::Failed {
        id,
        error: chain(error),
    }
}

fn event_line(event: &FleetEvent) -> Line<'static> {
    let what = match event {
        FleetEvent::Ended { id, end } => format!("clone {id} has ended: {end:?}"),
        FleetEvent::ZygoteGone => "the zygote has died; its clones live on".into(),
        FleetEvent::BackendEnded(status) => format!("the block backend has ended: {status}"),
    };
    Line::Event { what }
}

fn say(line: &Line<'_>) {
    let json = serde_json::to_string(line).unwrap_or_default();
    let mut out = io::stdout().lock();
    // Who does not read it any more does not want to know.
    let _ = writeln!(out, "{json}").and_then(|()| out.flush());
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_items() {
        let items: Vec<u64> = (0..50).collect();
        for threads in [0, 1, 7, 100] {
            let results = at_once(&items, threads, |item| {
                thread::sleep(Duration::from_micros(50 - item));
                item * 2
            });
            assert_eq!(
                results,
                items.iter().map(|item| item * 2).collect::<Vec<_>>()
            );
        }
        assert!(at_once(&[], 3, |item: &u64| *item).is_empty());
    }
}
