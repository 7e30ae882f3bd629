//! The end of a sandbox: whatever there is of it, nothing is left but its record.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, openat};

use super::Inner;
use super::model::{Phase, What};
use super::record;
use super::resident::{Resident, State};
use super::slots::Place;
use crate::claim;
use crate::error::chain;
use crate::sandbox::zygote::CloneEnd;
use crate::sandbox::{DEATH, of_file, process};

/// Longest reason that is kept, bytes.
const MAX_REASON: usize = 1024;

/// Ends it in the phase that is due. `why` is what went wrong when it was started, if that is why it ends. The
/// answer is the reason it has ended with. Only one thread may bury a sandbox: the one that starts it, and from
/// then on the one that hears of ends.
pub(super) fn bury(inner: &Arc<Inner>, resident: &Arc<Resident>, why: Option<&str>) -> String {
    let mut state = resident.lock();
    if state.phase.is_final() {
        return state.reason.clone().unwrap_or_default();
    }
    if let Some(process) = state.process.clone() {
        drop(state);
        make_sure(&process);
        state = resident.lock();
    }
    let next = state.phase.end();
    let reason = match next {
        // As it was asked to; or there is a reason already.
        Phase::Stopped => None,
        _ => Some(reason(resident, &state, why)),
    };
    let (slot, seat, part) = (state.slot.take(), state.seat.take(), state.part.take());
    state.burying = true;
    state.process = None;
    state.commands = 0;
    let mut last = resident.record(&state);
    last.phase = next;
    last.reason = reason.clone().or(last.reason);
    last.ended_ms = Some(super::events::now_ms());
    drop(state);
    leave_record(inner, resident, &last);
    // Ends what else is in it: a process that was made for the sandbox, and of which word never came.
    drop(slot);
    if let Err(error) = remove(&resident.directory) {
        log::warn!("cannot remove {}: {error}", resident.directory.display());
    }
    drop((seat, part));
    let mut state = resident.lock();
    resident.enter(&mut state, next, reason.as_deref(), &inner.events);
    let remove = state.remove_when_ended;
    let said = state.reason.clone().unwrap_or_default();
    drop(state);
    if remove {
        forget(inner, resident);
    } else {
        for gone in inner.registry.ended(resident) {
            forgotten(inner, &gone);
        }
    }
    said
}

/// Removes the record of one that has ended.
pub(super) fn forget(inner: &Inner, resident: &Resident) {
    if inner.registry.remove(resident) {
        forgotten(inner, resident);
    }
}

fn forgotten(inner: &Inner, resident: &Resident) {
    // Not there if it could not be written.
    let _ = std::fs::remove_file(inner.ended(&resident.id));
    let id = resident.id.clone();
    log::info!("sandbox {id}: its record is gone");
    inner.events.publish(What::Removed { id });
}

fn leave_record(inner: &Inner, resident: &Resident, last: &record::Record) {
    if let Err(error) = record::write(&inner.ended(&resident.id), last) {
        log::warn!(
            "sandbox {} will be forgotten with this daemon: {}",
            resident.id,
            chain(&error)
        );
    }
}

/// What is being killed may still add to the directory.
fn remove(directory: &Path) -> io::Result<()> {
    for _ in 0..40 {
        match claim::remove(directory) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                thread::sleep(Duration::from_millis(50));
            }
            done => return done,
        }
    }
    claim::remove(directory)
}

fn make_sure(process: &super::resident::Process) {
    process::kill(&process.pidfd);
    let ended = process::ends_within(&process.pidfd, DEATH);
    if !matches!(ended, Ok(true)) {
        log::error!("pid {} survives SIGKILL", process.record.pid);
    }
}

/// Why it has failed.
fn reason(resident: &Resident, state: &State, why: Option<&str>) -> String {
    let mut text = match (&state.doom, why, state.end) {
        (Some(doom), _, _) => doom.clone(),
        (None, Some(why), None | Some(CloneEnd::Unknown)) => why.to_owned(),
        (None, Some(why), Some(end)) => format!("{why} ({})", of_end(end)),
        (None, None, Some(CloneEnd::Signal(9))) if was_too_large(state) => {
            "the kernel killed its VMM: the memory limit of its cgroup was reached".into()
        }
        (None, None, Some(end)) => {
            let last_words = last_words(&resident.console(), end);
            format!("{}{last_words}", of_end(end))
        }
        (None, None, None) => of_end(CloneEnd::Unknown),
    };
    while text.len() > MAX_REASON {
        text.pop();
    }
    text
}

/// What an end means.
fn of_end(end: CloneEnd) -> String {
    // Exit codes are those of `vmm/src/outcome.rs`.
    match end {
        CloneEnd::Code(0) => "the guest powered itself off".into(),
        CloneEnd::Code(2) => "its VMM refused what it was asked for (exit code 2)".into(),
        CloneEnd::Code(3) => "its template no longer fits (exit code 3)".into(),
        CloneEnd::Code(4) => "its template is damaged (exit code 4)".into(),
        CloneEnd::Code(10) => "the guest restarted itself".into(),
        CloneEnd::Code(11) => "the guest's kernel panicked".into(),
        CloneEnd::Code(12) => "the guest crashed its processor".into(),
        CloneEnd::Code(13) => "its block backend went away".into(),
        CloneEnd::Code(code) => format!("its VMM failed (exit code {code})"),
        CloneEnd::Signal(31) => {
            "its VMM was killed for a system call that it must not make (signal 31)".into()
        }
        CloneEnd::Signal(signal) => format!("its VMM was killed (signal {signal})"),
        CloneEnd::Unknown => "its VMM has ended, and nobody was there to see how".into(),
    }
}

/// The console's last line, where that may explain an end. The guest has written it, so it is shown as its word.
fn last_words(console: &Path, end: CloneEnd) -> String {
    if !matches!(end, CloneEnd::Code(11 | 12)) {
        return String::new();
    }
    let lines = of_file(console, 1);
    lines.first().map_or_else(String::new, |line| {
        format!("; its console's last line: {line}")
    })
}

/// Whether the kernel has killed in its cgroup for memory since it was claimed.
fn was_too_large(state: &State) -> bool {
    let now = state
        .slot
        .as_ref()
        .and_then(|slot| oom_kills(slot.as_ref()));
    matches!((state.oom_kills, now), (Some(before), Some(now)) if now > before)
}

/// How often the kernel has killed in a cgroup because of its limit of memory, as far as that is known.
pub(super) fn oom_kills(slot: &dyn Place) -> Option<u64> {
    let read = || -> io::Result<String> {
        let directory = slot.fd()?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = openat(directory.as_fd(), "memory.events", flags, Mode::empty())?;
        let mut text = String::new();
        File::from(file).take(4096).read_to_string(&mut text)?;
        Ok(text)
    };
    let text = read().ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill "))?;
    line.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_has_its_words_and_only_crashes_quote_the_console() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "one\nKernel panic: \x1b[31mno init\n").unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for code in [0, 1, 2, 3, 4, 10, 11, 12, 13, 99] {
            let end = CloneEnd::Code(code);
            assert!(seen.insert(of_end(end)), "{code}");
            let quoted = last_words(file.path(), end);
            assert_eq!(
                quoted.is_empty(),
                !matches!(code, 11 | 12),
                "{code}: {quoted}"
            );
            assert!(!quoted.contains('\x1b'), "{quoted}");
        }
        for end in [CloneEnd::Signal(9), CloneEnd::Signal(31), CloneEnd::Unknown] {
            assert!(seen.insert(of_end(end)), "{end:?}");
        }
    }
}
