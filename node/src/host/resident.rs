//! One sandbox, as the daemon keeps it: what was wished for, which never changes, and its state.
//!
//! What must hold: every change of phase goes through [`Resident::enter`], which logs and publishes it; the
//! lock is held for moments only; of what a sandbox has been given, the state has all, so that burying it
//! needs nothing else.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::budget::Part;
use super::events::{Events, now_ms};
use super::line::Seat;
use super::model::{CreateSandbox, Detail, Limits, Phase, Summary, What};
use super::record::{self, ProcessRecord, Record};
use super::slots::Place;
use super::wish::Size;
use crate::agent::Agent;
use crate::error::PathError;
use crate::sandbox::process;
use crate::sandbox::zygote::{CloneEnd, Zygote};

/// A sandbox that lives, or whose record is kept.
#[derive(Debug)]
pub(super) struct Resident {
    pub(super) id: String,
    /// Grows in the order of creation.
    pub(super) number: u64,
    pub(super) wish: CreateSandbox,
    pub(super) key: Option<String>,
    pub(super) size: Size,
    pub(super) limits: Limits,
    pub(super) created_ms: u64,
    /// There while it lives.
    pub(super) directory: PathBuf,
    state: Mutex<State>,
    changed: Condvar,
}

/// What changes in its life.
#[derive(Debug)]
pub(super) struct State {
    pub(super) phase: Phase,
    pub(super) reason: Option<String>,
    pub(super) ready_ms: Option<u64>,
    pub(super) ended_ms: Option<u64>,
    pub(super) timeline_us: BTreeMap<String, u64>,
    /// Whether somebody starts it, who also buries it should that fail.
    pub(super) starting: bool,
    /// Whether what there is of it is being removed.
    pub(super) burying: bool,
    /// Whether its process is known to have ended.
    pub(super) exited: bool,
    /// How, once the zygote has said so.
    pub(super) end: Option<CloneEnd>,
    /// Why it had to be killed, if nobody asked for that.
    pub(super) doom: Option<String>,
    /// How often a zygote was asked for it.
    pub(super) attempt: u32,
    pub(super) process: Option<Process>,
    pub(super) slot: Option<Box<dyn Place>>,
    /// Times that the kernel had killed for memory in its slot before.
    pub(super) oom_kills: Option<u64>,
    pub(super) seat: Option<Seat>,
    pub(super) part: Option<Part>,
    pub(super) commands: u32,
    /// Whether there was a streamed command, as far as this daemon knows.
    pub(super) streamed: bool,
    pub(super) recovered: bool,
    pub(super) remove_when_ended: bool,
}

impl State {
    /// Of a sandbox in this phase that has nothing yet, and nobody to start it.
    pub(super) fn new(phase: Phase) -> Self {
        Self {
            phase,
            reason: None,
            ready_ms: None,
            ended_ms: None,
            timeline_us: BTreeMap::new(),
            starting: false,
            burying: false,
            exited: false,
            end: None,
            doom: None,
            attempt: 0,
            process: None,
            slot: None,
            oom_kills: None,
            seat: None,
            part: None,
            commands: 0,
            streamed: false,
            recovered: false,
            remove_when_ended: false,
        }
    }
}

/// Its VMM.
#[derive(Clone, Debug)]
pub(super) struct Process {
    pub(super) record: ProcessRecord,
    pub(super) pidfd: Arc<OwnedFd>,
    /// Whose child it is, and who will say how it ended.
    pub(super) zygote: Weak<Zygote>,
}

impl Resident {
    pub(super) fn new(made: Made, state: State) -> Self {
        let Made {
            id,
            number,
            wish,
            key,
            size,
            limits,
            created_ms,
            directory,
        } = made;
        Self {
            id,
            number,
            wish,
            key,
            size,
            limits,
            created_ms,
            directory,
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Into the next phase. Not possible: logged, nothing happens, and the answer is no.
    pub(super) fn enter(
        &self,
        state: &mut State,
        next: Phase,
        reason: Option<&str>,
        events: &Events,
    ) -> bool {
        let from = state.phase;
        if !from.may_become(next) {
            log::error!("sandbox {}: {from:?} cannot become {next:?}", self.id);
            return false;
        }
        let why = reason.map(|it| format!(": {it}")).unwrap_or_default();
        log::info!("sandbox {}: {from:?} -> {next:?}{why}", self.id);
        state.phase = next;
        if reason.is_some() {
            state.reason = reason.map(Into::into);
        }
        if next.is_final() {
            state.ended_ms = Some(now_ms());
        }
        events.publish(self.news(Some(from), state));
        self.changed.notify_all();
        true
    }

    /// That it is in its phase, as an event.
    pub(super) fn news(&self, from: Option<Phase>, state: &State) -> What {
        What::Sandbox {
            id: self.id.clone(),
            from,
            to: state.phase,
            reason: state.reason.clone(),
            labels: self.wish.labels.clone(),
        }
    }

    /// Wakes those who wait for a change that is none of the phase.
    pub(super) fn notify(&self) {
        self.changed.notify_all();
    }

    /// Waits while `condition` holds, at most until `deadline`.
    pub(super) fn wait_while(
        &self,
        deadline: Option<Instant>,
        mut condition: impl FnMut(&State) -> bool,
    ) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        while condition(&state) {
            let left = match deadline {
                None => Duration::from_secs(3600),
                Some(deadline) => deadline.saturating_duration_since(Instant::now()),
            };
            if left.is_zero() {
                break;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state
    }

    /// Kills its VMM, if there is one.
    pub(super) fn kill(state: &State) {
        if let Some(process) = &state.process {
            process::kill(&process.pidfd);
        }
    }

    /// The directory that the VMM of an attempt sees, if it is jailed.
    pub(super) fn jail(&self, attempt: u32) -> PathBuf {
        self.directory.join(format!("jail-{attempt}"))
    }

    pub(super) fn console(&self) -> PathBuf {
        self.directory.join("console.log")
    }

    /// Where its agent is reached: through its VMM and nobody else.
    pub(super) fn agent(&self, state: &State) -> Option<Agent> {
        let process = state.process.as_ref()?;
        let socket = self.jail(state.attempt).join("vsock.sock");
        Some(Agent::of(socket, process.record.pid))
    }

    /// Writes down what is so now.
    pub(super) fn save(&self, state: &State) -> Result<(), PathError> {
        if state.burying {
            // Its last record is written elsewhere, and its directory is on the way out.
            return Ok(());
        }
        record::write(&self.directory.join("record.json"), &self.record(state))
    }

    pub(super) fn record(&self, state: &State) -> Record {
        Record {
            version: record::VERSION,
            id: self.id.clone(),
            wish: self.wish.clone(),
            key: self.key.clone(),
            memory_mib: self.size.memory_mib,
            vcpus: self.size.vcpus,
            scratch_mib: self.size.scratch_mib,
            limits: self.limits.clone(),
            phase: state.phase,
            reason: state.reason.clone(),
            created_ms: self.created_ms,
            ready_ms: state.ready_ms,
            ended_ms: state.ended_ms,
            timeline_us: state.timeline_us.clone(),
            slot: state.slot.as_ref().map(|slot| slot.name().to_owned()),
            line: state.seat.as_ref().map(|seat| seat.line().name.clone()),
            attempt: state.attempt,
            process: state.process.as_ref().map(|process| process.record),
        }
    }

    /// When it has to be ended, if its time is limited.
    pub(super) fn deadline_ms(&self, state: &State) -> Option<u64> {
        let seconds = self.wish.timeout_s?;
        Some(state.ready_ms?.saturating_add(seconds.saturating_mul(1000)))
    }

    pub(super) fn summary(&self, state: &State) -> Summary {
        Summary {
            id: self.id.clone(),
            phase: state.phase,
            reason: state.reason.clone(),
            source: self.wish.source.clone(),
            labels: self.wish.labels.clone(),
            created_ms: self.created_ms,
            ended_ms: state.ended_ms,
        }
    }

    pub(super) fn detail(&self) -> Detail {
        let state = self.lock();
        let slot = state.slot.as_ref();
        Detail {
            summary: self.summary(&state),
            memory_mib: self.size.memory_mib,
            vcpus: self.size.vcpus,
            limits: self.limits.clone(),
            timeout_s: self.wish.timeout_s,
            timeline_us: state.timeline_us.clone(),
            cgroup: slot.map(|slot| slot.path().display().to_string()),
            pid: state.process.as_ref().map(|process| process.record.pid),
            memory_bytes: slot.and_then(|slot| slot.memory_current().ok()),
            cpu_us: slot.and_then(|slot| slot.cpu_usage_us().ok()),
            commands: state.commands,
            recovered: state.recovered,
        }
    }
}

/// What a sandbox is made with.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) id: String,
    pub(super) number: u64,
    pub(super) wish: CreateSandbox,
    pub(super) key: Option<String>,
    pub(super) size: Size,
    pub(super) limits: Limits,
    pub(super) created_ms: u64,
    pub(super) directory: PathBuf,
}
