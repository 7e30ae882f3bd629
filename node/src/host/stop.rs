//! Ends that were asked for.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::bury::forget;
use super::model::Phase;
use super::resident::Resident;
use super::{HostError, Inner};
use crate::error::chain;
use crate::sandbox::DEATH;

/// Asks the guest to power off, and kills it if it has not done so after `grace`.
pub(super) fn stop(
    inner: &Arc<Inner>,
    resident: &Arc<Resident>,
    grace: Duration,
) -> Result<(), HostError> {
    let deadline = Instant::now() + grace;
    let (agent, asked) = {
        let mut state = resident.lock();
        let agent = match state.phase {
            // One that is not ready has nobody who could be asked.
            Phase::Ready | Phase::Running => resident.agent(&state),
            _ => None,
        };
        (agent, ask(inner, resident, &mut state))
    };
    if !asked {
        return Ok(());
    }
    if let Some(agent) = agent.filter(|_| !grace.is_zero()) {
        let id = resident.id.clone();
        // On a thread, since the guest may answer slowly or never.
        let asking = thread::Builder::new().name("stop".into()).spawn(move || {
            if let Err(error) = agent.dial().and_then(|it| it.shutdown()) {
                log::debug!("sandbox {id} was asked to power off: {}", chain(&error));
            }
        });
        if asking.is_ok() {
            drop(resident.wait_while(Some(deadline), |state| !state.phase.is_final()));
        }
    }
    finish(resident)
}

/// Kills it, whatever it does.
pub(super) fn kill(inner: &Arc<Inner>, resident: &Arc<Resident>) -> Result<(), HostError> {
    let asked = ask(inner, resident, &mut resident.lock());
    if asked { finish(resident) } else { Ok(()) }
}

/// Removes the record of one that has ended; of one that lives only with `force`.
pub(super) fn remove(
    inner: &Arc<Inner>,
    resident: &Arc<Resident>,
    force: bool,
) -> Result<(), HostError> {
    let phase = resident.lock().phase;
    if !phase.is_final() {
        if !force {
            return Err(HostError::WrongPhase {
                id: resident.id.clone(),
                phase,
                message: "stop it first, or remove it by force".into(),
            });
        }
        kill(inner, resident)?;
    }
    forget(inner, resident);
    Ok(())
}

/// Notes that its end was asked for; whether there is an end to wait for.
fn ask(inner: &Inner, resident: &Resident, state: &mut super::resident::State) -> bool {
    if state.phase.is_final() {
        return false;
    }
    if state.phase != Phase::Stopping {
        resident.enter(state, Phase::Stopping, None, &inner.events);
        if let Err(error) = resident.save(state) {
            // A later daemon would find it alive.
            log::warn!("{}", chain(&error));
        }
    }
    true
}

/// Kills it and waits for its end.
fn finish(resident: &Resident) -> Result<(), HostError> {
    Resident::kill(&resident.lock());
    let deadline = Instant::now() + DEATH;
    let state = resident.wait_while(Some(deadline), |state| !state.phase.is_final());
    if state.phase.is_final() {
        return Ok(());
    }
    Err(HostError::Late {
        message: format!("sandbox {} survives its death", resident.id),
    })
}
