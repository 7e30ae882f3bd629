//! The start of a sandbox, from its place in the registry to a guest that answers.
//!
//! Written down before it is relied on: that there will be a process in this slot, before it is forked; which one
//! it is, as soon as it is there; that it is ready, before anybody is told.

mod dial;
mod failure;

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::pipe::{PipeFlags, pipe_with};

use super::bury::bury;
use super::ends::News;
use super::events::now_ms;
use super::line::{Line, Seat};
use super::model::Phase;
use super::plan::Plan;
use super::record::ProcessRecord;
use super::resident::{Process, Resident};
use super::{HostError, Inner, error, make_directory};
use crate::error::chain;
use crate::places;
use crate::sandbox::vmm::{BootSpec, CloneSpec, Ends, Machine};
use crate::sandbox::words::{Silence, Words};
use crate::sandbox::zygote::{Handle, Role, Wanted, Zygote, ZygoteError};
use crate::sandbox::{MAX_SOCKET, process, ready, renew};
use crate::template::Binding;
use dial::Dial;
use failure::{StartFailure, ended, explained};

/// For a clone to run, once its process is there; for a guest to boot.
const RUNNING: Duration = Duration::from_secs(60);

/// For the one message of a guest that is ready.
const READY: Duration = Duration::from_secs(10);

/// For words that are on their way already.
const HINDSIGHT: Duration = Duration::from_secs(1);

/// Starts a sandbox that has been entered; nothing is left of one that does not become ready but its record.
pub(super) fn start(
    inner: &Arc<Inner>,
    resident: &Arc<Resident>,
    plan: Plan,
    since: Instant,
) -> Result<(), HostError> {
    let mut nascent = Nascent {
        inner,
        resident,
        since,
        done: false,
    };
    let Err(failure) = nascent.run(plan) else {
        return Ok(());
    };
    let message = chain(&failure);
    let reason = nascent.fail(&message);
    let id = resident.id.clone();
    let phase = resident.lock().phase;
    Err(match error::exhausted(&failure) {
        _ if phase == Phase::Stopped => HostError::Ended {
            id,
            message: "it was stopped while it started".into(),
        },
        Some(what) => HostError::Full {
            what,
            limit: 0,
            message: format!(
                "sandbox {id} did not start, the host has run out of {what}: {reason}"
            ),
        },
        None => match failure {
            StartFailure::Template(refusal) => *refusal,
            _ => HostError::Start {
                id,
                message: reason,
            },
        },
    })
}

/// A sandbox on its way. Dropped before it is ready, it is buried.
struct Nascent<'a> {
    inner: &'a Arc<Inner>,
    resident: &'a Arc<Resident>,
    since: Instant,
    done: bool,
}

/// A forked VMM and what is heard of it.
struct Forked {
    words: Words,
    process: Process,
    /// Where a guest that boots reports ready.
    ready: Option<UnixListener>,
}

impl Nascent<'_> {
    fn run(&mut self, plan: Plan) -> Result<(), StartFailure> {
        self.mark("slot", "slot");
        self.prepare()?;
        let cloned = plan.is_template();
        let mut line = self.seat(plan)?;
        let mut forked = self.fork(&line);
        if let Err(StartFailure::Zygote(ZygoteError::TemplateUnfit(why))) = forked {
            line = self.seat_anew(&line, why)?;
            forked = self.fork(&line);
        }
        let mut forked = match forked {
            // The zygote may have made a process before it died, which nobody knows but the slot: another slot.
            Err(StartFailure::Zygote(ZygoteError::Gone)) => {
                self.change_slot()?;
                self.fork(&line)?
            }
            other => other?,
        };
        self.mark("fork", "forked");
        if cloned {
            self.await_clone(&mut forked)?;
        } else {
            self.await_boot(&mut forked)?;
        }
        self.mark("ready", "ready");
        self.ready()
    }

    /// A directory that only we can write to, with a record.
    fn prepare(&self) -> Result<(), StartFailure> {
        make_directory(&self.resident.directory)?;
        let longest = self.resident.jail(1).join("vsock.sock_4294967295");
        if longest.as_os_str().len() > MAX_SOCKET {
            return Err(StartFailure::Socket(longest));
        }
        Ok(self.resident.save(&self.resident.lock())?)
    }

    fn seat(&self, plan: Plan) -> Result<Arc<Line>, StartFailure> {
        let seat: Seat = self.inner.lines.seat(self.inner, plan)?;
        let line = Arc::clone(seat.line());
        self.resident.lock().seat = Some(seat);
        Ok(line)
    }

    /// At the line of another template, as that of this one is refused.
    fn seat_anew(&self, refused: &Line, why: String) -> Result<Arc<Line>, StartFailure> {
        let resident = self.resident;
        // First the seat, so that its line can go.
        let seat = resident.lock().seat.take();
        drop(seat);
        let id = refused.key.strip_prefix("t-").unwrap_or(&refused.key);
        let renewed = Plan::renewed(self.inner, &resident.wish, id, why);
        let (plan, size) = renewed.map_err(|error| StartFailure::Template(Box::new(error)))?;
        if size != resident.size {
            let message = "its template was replaced by one of another size meanwhile";
            let error = HostError::invalid("source.template", message);
            return Err(StartFailure::Template(Box::new(error)));
        }
        self.seat(plan)
    }

    fn change_slot(&self) -> Result<(), StartFailure> {
        let old = self.resident.lock().slot.take();
        drop(old);
        let slot = self.inner.slots.claim(&self.resident.limits)?;
        let mut state = self.resident.lock();
        state.oom_kills = super::bury::oom_kills(slot.as_ref());
        state.slot = Some(slot);
        Ok(())
    }

    /// Has a zygote make its process, in a directory and with a record that say that there will be one.
    fn fork(&mut self, line: &Arc<Line>) -> Result<Forked, StartFailure> {
        let resident = self.resident;
        let mut state = resident.lock();
        state.attempt += 1;
        let jail = resident.jail(state.attempt);
        resident.save(&state)?;
        let slot = state.slot.as_ref().ok_or(StartFailure::Doomed)?;
        let (cgroup, owner) = (slot.fd()?, self.inner.owner(slot.name()));
        drop(state);
        make_directory(&jail)?;
        let binding = line.binding();
        let ready = match binding {
            Some(_) => None,
            None => Some(dial::listen(&jail)?),
        };
        if let Some(owner) = owner {
            dial::give(&jail, owner.uid)?;
        }
        let (vsock, console) = (jail.join("vsock.sock"), resident.console());
        let (root, scratch) = (line.root(), line.scratch());
        let ends = Ends {
            root: &root,
            scratch: &scratch,
            vsock: &vsock,
            console: Some(&console),
            jail: owner.map(|owner| (owner, jail.as_path())),
        };
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(std::io::Error::from)?;
        let fds = [
            (Role::Cgroup, cgroup.as_fd()),
            (Role::Stdout, write.as_fd()),
            (Role::Stderr, self.inner.log.as_fd()),
        ];
        let (zygote, handle) = match &binding {
            Some(binding) => self.make_clone(line, binding, &ends, &fds)?,
            None => self.make_machine(&ends, &fds)?,
        };
        // The VMM has the only other one: its end is the end of its words.
        drop(write);
        let process = self.keep(&zygote, handle)?;
        Ok(Forked {
            words: Words::new(read),
            process,
            ready,
        })
    }

    fn make_clone(
        &self,
        line: &Line,
        binding: &Binding,
        ends: &Ends<'_>,
        fds: &[(Role, BorrowedFd<'_>)],
    ) -> Result<(Arc<Zygote>, Handle), StartFailure> {
        let spec = CloneSpec::new(binding, ends)?;
        let zygote = line.nursery.zygote(self.inner)?;
        let handle = zygote.make(&self.resident.id, Wanted::Clone(&spec), fds)?;
        Ok((zygote, handle))
    }

    fn make_machine(
        &self,
        ends: &Ends<'_>,
        fds: &[(Role, BorrowedFd<'_>)],
    ) -> Result<(Arc<Zygote>, Handle), StartFailure> {
        let (id, size) = (&self.resident.id, self.resident.size);
        let kernel = places::guest("vmlinux")?;
        let initrd = places::guest("initrd.cpio")?;
        let machine = Machine {
            kernel: &kernel,
            initrd: &initrd,
            memory_mib: size.memory_mib,
            vcpus: size.vcpus,
            verbose: false,
        };
        let spec = BootSpec::new(id, &machine, ends)?;
        let zygote = self.inner.lines.boots.zygote(self.inner)?;
        let handle = zygote.make(id, Wanted::Boot(&spec), fds)?;
        Ok((zygote, handle))
    }

    /// Writes down which process it is, and has it watched.
    fn keep(&self, zygote: &Arc<Zygote>, handle: Handle) -> Result<Process, StartFailure> {
        let Handle { pid, pidfd } = handle;
        let resident = self.resident;
        let mut state = resident.lock();
        let process = Process {
            record: ProcessRecord {
                pid,
                started: process::start_time(pid).unwrap_or_default(),
            },
            pidfd: Arc::new(pidfd),
            zygote: Arc::downgrade(zygote),
        };
        state.process = Some(process.clone());
        resident.save(&state)?;
        let doomed = state.doom.is_some() || state.phase != Phase::Creating;
        drop(state);
        self.inner
            .ends
            .inbox()
            .tell(News::Sandbox(Arc::clone(resident)));
        if doomed {
            return Err(StartFailure::Doomed);
        }
        Ok(process)
    }

    fn await_clone(&mut self, forked: &mut Forked) -> Result<(), StartFailure> {
        let timeline = forked
            .words
            .timeline(RUNNING)
            .map_err(|it| ended(it, RUNNING))?;
        self.mark("running", "running");
        self.vmm_timeline(&timeline);
        let agent = self.resident.agent(&self.resident.lock());
        let agent = agent.ok_or(StartFailure::Doomed)?;
        match renew::renew(&agent, &self.resident.id) {
            Ok(took) => {
                let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
                let mut state = self.resident.lock();
                state.timeline_us.insert("guest_renewed".into(), took);
                Ok(())
            }
            Err(why) => Err(explained(forked, why)),
        }
    }

    fn await_boot(&mut self, forked: &mut Forked) -> Result<(), StartFailure> {
        let deadline = Instant::now() + RUNNING;
        let listener = forked.ready.take().ok_or(StartFailure::Doomed)?;
        let stream = match dial::await_dial(&listener, &forked.process.pidfd, deadline)? {
            Dial::Guest(stream) => stream,
            Dial::Gone => return Err(explained(forked, "it said nothing".into())),
            Dial::Late => return Err(StartFailure::Late(RUNNING)),
        };
        self.mark("running", "running");
        if let Err(why) = ready::hear(&stream, Instant::now() + READY) {
            return Err(explained(forked, why));
        }
        match forked.words.timeline(HINDSIGHT) {
            Ok(timeline) => self.vmm_timeline(&timeline),
            Err(Silence::Late) => {}
            Err(silence) => return Err(ended(silence, HINDSIGHT)),
        }
        // Nobody dials it again.
        let _ = fs::remove_file(dial::ready_socket(
            &self.resident.jail(self.resident.lock().attempt),
        ));
        Ok(())
    }

    fn ready(&mut self) -> Result<(), StartFailure> {
        let resident = self.resident;
        let mut state = resident.lock();
        if state.exited || state.doom.is_some() || state.phase != Phase::Creating {
            return Err(StartFailure::Doomed);
        }
        state.ready_ms = Some(now_ms());
        state.phase = Phase::Ready;
        let saved = resident.save(&state);
        state.phase = Phase::Creating;
        saved?;
        resident.enter(&mut state, Phase::Ready, None, &self.inner.events);
        state.starting = false;
        self.done = true;
        drop(state);
        if resident.wish.timeout_s.is_some() || resident.wish.auto_remove {
            self.inner
                .ends
                .inbox()
                .tell(News::Ready(Arc::clone(resident)));
        }
        Ok(())
    }

    /// A step is done, at this instant of the start.
    fn mark(&mut self, step: &'static str, instant: &str) {
        let took = self.since.elapsed();
        let source = &self.resident.wish.source;
        self.inner.observe(step, source, took);
        let at = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.resident.lock().timeline_us.insert(instant.into(), at);
    }

    /// Instants of the VMM count from its own zero.
    fn vmm_timeline(&self, instants: &BTreeMap<String, u64>) {
        let mut state = self.resident.lock();
        // A hostile VMM's list would be long.
        for (name, at) in instants.iter().take(64) {
            state.timeline_us.insert(format!("vmm_{name}"), *at);
        }
    }

    fn fail(&mut self, why: &str) -> String {
        self.done = true;
        bury(self.inner, self.resident, Some(why))
    }
}

impl Drop for Nascent<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.fail(&StartFailure::Panicked.to_string());
        }
    }
}
