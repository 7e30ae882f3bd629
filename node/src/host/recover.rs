//! What an earlier daemon has left, however it ended: what lives is taken over, what was half made is buried.
//!
//! In this order: first nobody makes anything any more (old zygotes are gone), then disks, then sandboxes, and
//! at last the slots that nobody has claimed, in which there may be a process that nobody had written down yet.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::sockopt::socket_peercred;

use super::bury::bury;
use super::ends::News;
use super::line::{Held, Line, Seat};
use super::model::{Phase, Source};
use super::nursery;
use super::record::{self, LineRecord, Record, Stored};
use super::registry::Entered;
use super::resident::{Made, Process, Resident, State};
use super::wish::Size;
use super::{Inner, OpenError};
use crate::claim;
use crate::error::{PathError, chain};
use crate::sandbox::{DEATH, process};
use crate::template::{self, Templates};

/// Lines by the names of their directories.
type Found = BTreeMap<String, Arc<Line>>;

/// Takes over what there is.
pub(super) fn recover(inner: &Arc<Inner>) -> Result<(), OpenError> {
    nursery::await_end(&inner.directory);
    let lines = lines(inner)?;
    let mut records = Vec::new();
    for path in entries(&inner.directory.join("ended"))? {
        records.extend(ended(&path));
    }
    let over: Vec<String> = records.iter().map(|it| it.id.clone()).collect();
    for path in entries(&inner.directory.join("s"))? {
        records.extend(living(&path, &over)?);
    }
    records.sort_by(|a, b| (a.created_ms, &a.id).cmp(&(b.created_ms, &b.id)));
    let mut ends: Vec<(u64, Arc<Resident>)> = Vec::new();
    for record in records {
        let ended_ms = record.ended_ms;
        let resident = take_over(inner, record, &lines);
        ends.extend(ended_ms.map(|at| (at, resident)));
    }
    ends.sort_by_key(|(at, _)| *at);
    for (_, resident) in ends {
        for gone in inner.registry.ended(&resident) {
            let _ = fs::remove_file(inner.ended(&gone.id));
        }
    }
    inner.slots.finish_recovery();
    Ok(())
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, PathError> {
    let list = fs::read_dir(directory).map_err(PathError::at("list", directory))?;
    list.map(|entry| Ok(entry.map_err(PathError::at("list", directory))?.path()))
        .collect()
}

/// The record of one that had ended. One that cannot be used is no loss that would be worth an error.
fn ended(path: &Path) -> Option<Record> {
    let json = path.extension() == Some(OsStr::new("json"));
    match record::read::<Record>(path) {
        Ok(Stored::Whole(record)) if json && record.phase.is_final() => Some(record),
        Ok(Stored::Absent) => None,
        other => {
            if let Err(error) = other {
                log::warn!("removed: {}", chain(&error));
            }
            let _ = fs::remove_file(path);
            None
        }
    }
}

/// The record of one that lived, unless its last one was written already.
fn living(directory: &Path, over: &[String]) -> Result<Option<Record>, OpenError> {
    let id = directory.file_name().unwrap_or_default().to_string_lossy();
    let stored = if over.iter().any(|it| *it == id) {
        Stored::Absent
    } else {
        record::read::<Record>(&directory.join("record.json"))?
    };
    match stored {
        Stored::Whole(record) if record.id == id => return Ok(Some(record)),
        Stored::Whole(record) => log::warn!("{} is of {}", directory.display(), record.id),
        Stored::Garbage(why) => log::warn!("{} has no record: {why}", directory.display()),
        Stored::Absent => {}
    }
    claim::remove(directory).map_err(PathError::at("remove", directory))?;
    Ok(None)
}

/// Enters one, and buries it unless it lives.
fn take_over(inner: &Arc<Inner>, record: Record, lines: &Found) -> Arc<Resident> {
    let mut state = State::new(record.phase);
    state.reason.clone_from(&record.reason);
    state.ready_ms = record.ready_ms;
    state.ended_ms = record.ended_ms;
    state.timeline_us.clone_from(&record.timeline_us);
    state.attempt = record.attempt;
    state.recovered = true;
    let mut why = None;
    if !record.phase.is_final() {
        why = gather(inner, &record, lines, &mut state);
    }
    let lives = !record.phase.is_final() && why.is_none();
    let resident = enter(inner, record, state);
    if lives {
        log::info!("sandbox {}: found again", resident.id);
        let inbox = inner.ends.inbox();
        inbox.tell(News::Sandbox(Arc::clone(&resident)));
        inbox.tell(News::Ready(Arc::clone(&resident)));
    } else if let Some(why) = why {
        bury(inner, &resident, Some(&why));
    }
    resident
}

/// Collects what there is of a sandbox; why that is not enough to live on, if it is not.
fn gather(inner: &Arc<Inner>, record: &Record, lines: &Found, state: &mut State) -> Option<String> {
    let pidfd = record
        .process
        .and_then(|it| process::find(it.pid, it.started));
    let alive = pidfd.is_some();
    state.process = record.process.zip(pidfd).map(|(record, pidfd)| Process {
        record,
        pidfd: Arc::new(pidfd),
        zygote: std::sync::Weak::new(),
    });
    let slot = record.slot.as_ref().map(|name| inner.slots.adopt(name));
    let mut no_slot = String::from("it has none");
    match slot {
        Some(Ok(slot)) => state.slot = Some(slot),
        Some(Err(error)) => no_slot = chain(&error),
        None => {}
    }
    let line = record.line.as_ref().and_then(|name| lines.get(name));
    state.seat = line.map(Seat::take);
    state.part = Some(inner.admission.budget().keep(record.memory_mib));
    match record.phase {
        Phase::Creating => Some("the daemon ended while it started".into()),
        Phase::Stopping => Some("its end was asked for".into()),
        _ if !alive => Some("it ended while no daemon was there".into()),
        _ if state.seat.is_none() => {
            Some("its block backend ended while no daemon was there".into())
        }
        _ if state.slot.is_none() => Some(format!("its cgroup cannot be taken over: {no_slot}")),
        _ => None,
    }
}

fn enter(inner: &Arc<Inner>, record: Record, state: State) -> Arc<Resident> {
    // Whoever was told nothing of a start that came to nothing asks again, and gets a new one.
    let key = record.key.filter(|_| record.phase != Phase::Creating);
    let entered = inner.registry.enter(None, |number| {
        let made = Made {
            number,
            directory: inner.directory.join("s").join(&record.id),
            id: record.id,
            wish: record.wish,
            key,
            size: Size {
                memory_mib: record.memory_mib,
                vcpus: record.vcpus,
                scratch_mib: record.scratch_mib,
            },
            limits: record.limits,
            created_ms: record.created_ms,
        };
        Arc::new(Resident::new(made, state))
    });
    match entered {
        Entered::New(resident) | Entered::Known(resident) => resident,
    }
}

/// Finds the backends that live, and removes what is left of others.
fn lines(inner: &Arc<Inner>) -> Result<Found, OpenError> {
    let mut found = Found::new();
    for directory in entries(inner.lines.directory())? {
        nursery::await_end(&directory);
        let stored = record::read::<LineRecord>(&directory.join("line.json"))?;
        let name = directory.file_name().unwrap_or_default();
        let name = name.to_string_lossy().into_owned();
        let Stored::Whole(mut record) = stored else {
            evict(inner, &directory, &name)?;
            continue;
        };
        let Some(pidfd) = process::find(record.backend.pid, record.backend.started) else {
            log::warn!("line {name}: the block backend ended while no daemon was there");
            inner.remove_layers(&name);
            super::lines::remove_directory(&directory)?;
            continue;
        };
        let held = hold(inner, &record);
        if matches!(held, Held::Retired) {
            // For those that have it and nobody else.
            record.key = format!("old-{name}");
        }
        let line = Line::found(record, directory, pidfd, held);
        inner.lines.adopt(&line);
        inner.ends.inbox().tell(News::Line(Arc::clone(&line)));
        found.insert(name, line);
    }
    Ok(found)
}

/// Locks what a line is made of, if that is still there: also what has lost its name since.
fn hold(inner: &Inner, record: &LineRecord) -> Held {
    let image = |name: &str| {
        let image = inner
            .store
            .find_digest(&name.parse().ok()?, &record.made_of);
        Some(Held::Image {
            _image: image.ok()?,
        })
    };
    let template = || {
        let template = Templates::of(&inner.store)
            .find_build(&record.made_of)
            .ok()?;
        let binding = template::binding_now(&inner.store, &template.record).ok()?;
        Some(Held::Template {
            template: Box::new(template),
            binding,
        })
    };
    let held = match &record.source {
        Source::Image(name) => image(name),
        Source::Template(_) => template(),
    };
    held.unwrap_or(Held::Retired)
}

/// Ends a backend that was started and not written down. It listens already, and the kernel says who does that, or
/// it will find that its directory is gone, and end.
fn evict(inner: &Inner, directory: &Path, name: &str) -> Result<(), OpenError> {
    let grave = directory.with_file_name(format!(".dead-{name}"));
    let grave = match fs::rename(directory, &grave) {
        Ok(()) => grave,
        Err(_) => directory.to_path_buf(),
    };
    for socket in ["root.sock", "scratch.sock"] {
        let listener = || {
            let peer = socket_peercred(UnixStream::connect(grave.join(socket)).ok()?).ok()?;
            u32::try_from(peer.pid.as_raw_pid()).ok()
        };
        // Asked once more when there is a descriptor: whoever listens now has not ended before that.
        if let Some(pid) = listener()
            && let Ok(pidfd) = process::open(pid)
            && listener() == Some(pid)
        {
            log::warn!("line {name}: pid {pid} was not written down and is ended");
            process::kill(&pidfd);
            let ended = process::ends_within(&pidfd, DEATH.min(Duration::from_secs(10)));
            if !matches!(ended, Ok(true)) {
                log::error!("pid {pid} survives SIGKILL");
            }
        }
    }
    inner.remove_layers(name);
    Ok(super::lines::remove_directory(&grave)?)
}
