//! From a wish to a place in the registry, once there is room and a slot for it.

use std::sync::Arc;
use std::time::Instant;

use super::model::{CreateSandbox, Detail, Phase};
use super::plan::Plan;
use super::registry::Entered;
use super::resident::{Made, Resident, State};
use super::{HostError, Inner, PoolError, bury, error, events, start, wish};
use crate::claim;
use crate::error::{PathError, chain};

/// A sandbox that was asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Created {
    pub detail: Detail,
    /// Whether it was made now; another one was asked for under the same key before.
    pub fresh: bool,
}

/// Makes a sandbox, or finds the one that was made for the same wish under the same key.
pub(super) fn create(
    inner: &Arc<Inner>,
    wish: CreateSandbox,
    key: Option<String>,
) -> Result<Created, HostError> {
    let since = Instant::now();
    if inner.is_closing() {
        return Err(HostError::Closing);
    }
    wish::check_wish(&wish)?;
    if let Some(key) = &key {
        wish::check_key(key)?;
        if let Some(known) = inner.registry.of_key(key) {
            return again(&known, &wish);
        }
    }
    let (plan, size) = Plan::new(inner, &wish)?;
    let limits = wish::limits(&wish.limits, &inner.defaults, size.memory_mib)?;
    let mut state = State::new(Phase::Creating);
    state.starting = true;
    state.part = Some(inner.admission.budget().take(size.memory_mib)?);
    let slot = inner.slots.claim(&limits).map_err(no_slot)?;
    state.oom_kills = bury::oom_kills(slot.as_ref());
    state.slot = Some(slot);
    let id = claim::random_hex().map_err(PathError::at("get random bytes for", "an id"))?;
    let asked = wish.clone();
    let entered = inner.registry.enter(key.clone().as_deref(), |number| {
        let made = Made {
            directory: inner.directory.join("s").join(&id),
            id,
            number,
            wish,
            key,
            size,
            limits,
            created_ms: events::now_ms(),
        };
        let resident = Arc::new(Resident::new(made, state));
        log::info!("sandbox {}: {:?}", resident.id, Phase::Creating);
        let news = resident.news(None, &resident.lock());
        inner.events.publish(news);
        resident
    });
    let resident = match entered {
        Entered::New(resident) => resident,
        Entered::Known(known) => return again(&known, &asked),
    };
    start::start(inner, &resident, plan, since)?;
    Ok(Created {
        detail: resident.detail(),
        fresh: true,
    })
}

/// The sandbox of an earlier wish under the same key, once it is ready or has failed to be.
fn again(known: &Resident, wish: &CreateSandbox) -> Result<Created, HostError> {
    if known.wish != *wish {
        return Err(HostError::KeyReused {
            key: known.key.clone().unwrap_or_default(),
        });
    }
    let state = known.wait_while(None, |state| state.starting && !state.phase.is_final());
    if state.phase.is_final() && state.ready_ms.is_none() {
        return Err(HostError::Start {
            id: known.id.clone(),
            message: state.reason.clone().unwrap_or_default(),
        });
    }
    drop(state);
    Ok(Created {
        detail: known.detail(),
        fresh: false,
    })
}

fn no_slot(error: PoolError) -> HostError {
    let message = chain(&error);
    match error {
        PoolError::Exhausted { slots } => HostError::Full {
            what: "slots",
            limit: u64::try_from(slots).unwrap_or(u64::MAX),
            message,
        },
        other => HostError::Full {
            what: error::exhausted(&other).unwrap_or("slots"),
            limit: 0,
            message,
        },
    }
}
