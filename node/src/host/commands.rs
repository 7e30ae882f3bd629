//! Commands in a sandbox: a connection to its agent for somebody who speaks with it, or one command from
//! beginning to end.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use rundlet_protocol::{ExecSpec, ExitStatus};

use super::model::Phase;
use super::resident::{Resident, State};
use super::{HostError, Inner};
use crate::agent::{AgentError, Connection};
use crate::sandbox::output::{Output, OutputError, Terms};

/// Most that is kept of one stream of a command that somebody waits for, bytes.
const KEEP: usize = 4 * 1024 * 1024;

/// A connection to an agent, to be greeted.
#[derive(Debug)]
pub struct OpenCommand {
    /// The next byte on it is the agent's.
    pub stream: UnixStream,
    /// The sandbox's environment, under what a command brings itself.
    pub env: BTreeMap<String, String>,
    pub held: CommandHold,
}

/// A command that runs. Dropped, it is over.
#[derive(Debug)]
pub struct CommandHold {
    inner: Arc<Inner>,
    resident: Arc<Resident>,
    /// Whether the sandbox goes with it, if it was made to.
    last: bool,
}

/// A command that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// Whether there was more of a stream than is kept.
    pub truncated: bool,
}

/// Connects; `streamed` commands take their sandbox with them, if it was made so.
pub(super) fn open(
    inner: &Arc<Inner>,
    resident: &Arc<Resident>,
    streamed: bool,
) -> Result<OpenCommand, HostError> {
    let agent = {
        let state = resident.lock();
        check(resident, &state)?;
        resident.agent(&state)
    };
    let agent = agent.ok_or_else(|| over(resident, &resident.lock()))?;
    let stream = agent.call().map_err(|error| hindsight(resident, error))?;
    let held = begin(inner, resident, streamed)?;
    Ok(OpenCommand {
        stream,
        env: resident.wish.env.clone(),
        held,
    })
}

/// Runs a command to its end and keeps what it writes.
pub(super) fn run(
    inner: &Arc<Inner>,
    resident: &Arc<Resident>,
    mut spec: ExecSpec,
    stdin: Vec<u8>,
    limit: Duration,
) -> Result<Finished, HostError> {
    let OpenCommand { stream, env, held } = open(inner, resident, false)?;
    for (name, value) in env {
        spec.env.entry(name).or_insert(value);
    }
    spec.stdin = !stdin.is_empty();
    let terms = Terms {
        limit,
        keep: KEEP,
        stdin,
    };
    let output = Connection::greet(stream)
        .map_err(OutputError::Agent)
        .and_then(|connection| Output::of(connection, spec, terms));
    drop(held);
    match output {
        Ok(output) => Ok(Finished {
            status: output.status,
            stdout: output.stdout,
            stderr: output.stderr,
            truncated: output.truncated,
        }),
        Err(OutputError::Agent(error)) => Err(hindsight(resident, error)),
        Err(OutputError::Command(failure)) => Err(AgentError::Failed(failure).into()),
        Err(error @ OutputError::Late(_)) => Err(HostError::Late {
            message: format!("{error}; it was killed"),
        }),
    }
}

/// Counts a command; the first one makes its sandbox a running one.
fn begin(
    inner: &Arc<Inner>,
    resident: &Arc<Resident>,
    streamed: bool,
) -> Result<CommandHold, HostError> {
    let mut state = resident.lock();
    check(resident, &state)?;
    if state.phase == Phase::Ready {
        resident.enter(&mut state, Phase::Running, None, &inner.events);
        if let Err(error) = resident.save(&state) {
            // It would be found again as ready, which is no harm.
            log::warn!("{}", crate::error::chain(&error));
        }
    }
    state.commands += 1;
    state.streamed |= streamed;
    Ok(CommandHold {
        inner: Arc::clone(inner),
        resident: Arc::clone(resident),
        last: streamed && resident.wish.auto_remove,
    })
}

fn check(resident: &Resident, state: &State) -> Result<(), HostError> {
    match state.phase {
        Phase::Ready | Phase::Running => Ok(()),
        Phase::Creating => Err(HostError::WrongPhase {
            id: resident.id.clone(),
            phase: state.phase,
            message: "no command can be run in it yet".into(),
        }),
        Phase::Stopping | Phase::Stopped | Phase::Failed => Err(over(resident, state)),
    }
}

/// That it has ended, or is about to.
pub(super) fn over(resident: &Resident, state: &State) -> HostError {
    let reason = state.reason.clone();
    HostError::Ended {
        id: resident.id.clone(),
        message: reason.unwrap_or_else(|| "it was asked to".into()),
    }
}

/// A broken connection is often the first that is seen of a sandbox's end.
fn hindsight(resident: &Resident, error: AgentError) -> HostError {
    let deadline = std::time::Instant::now() + Duration::from_secs(1);
    let state = match error {
        AgentError::Failed(_) | AgentError::Version { .. } => return error.into(),
        _ => resident.wait_while(Some(deadline), |state| !state.phase.is_final()),
    };
    if state.phase.is_final() {
        over(resident, &state)
    } else {
        error.into()
    }
}

impl Drop for CommandHold {
    fn drop(&mut self) {
        let mut state = self.resident.lock();
        state.commands = state.commands.saturating_sub(1);
        if !self.last {
            return;
        }
        state.remove_when_ended = true;
        if state.phase.is_final() {
            drop(state);
            super::bury::forget(&self.inner, &self.resident);
        } else if state.phase != Phase::Stopping {
            let why = "its command has ended, and it was made for one";
            let events = &self.inner.events;
            self.resident
                .enter(&mut state, Phase::Stopping, Some(why), events);
            Resident::kill(&state);
        }
    }
}
