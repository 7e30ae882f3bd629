//! Makes a clone unlike its siblings, as soon as it runs. A clone counts as ready when its agent has
//! said that this is done.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rundlet_protocol::{Entropy, Renewal};
use rustix::rand::{GetRandomFlags, getrandom};

use super::{Event, Sink};
use crate::agent::Agent;
use crate::error::chain;

/// For the whole renewal. It is a few milliseconds' work; a host with hundreds of clones starting at
/// once may be slow to get to it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A sink that renews the guest on the VMM's first timeline, which says that its vCPUs run, and tells
/// `events` how that went.
pub(super) fn when_running(agent: Agent, hostname: String, events: &Sink) -> Sink {
    let events = Arc::clone(events);
    Arc::new(move |event| {
        if matches!(event, Event::Timeline(_)) {
            let (agent, hostname) = (agent.clone(), hostname.clone());
            let to = Arc::clone(&events);
            let begun = thread::Builder::new().name("renew".into()).spawn(move || {
                to(match renew(&agent, &hostname) {
                    Ok(took) => Event::Renewed(took),
                    Err(why) => Event::NotReady(why),
                });
            });
            if let Err(error) = begun {
                events(Event::NotReady(format!(
                    "cannot start a thread to renew it: {error}"
                )));
            }
        }
        events(event);
    })
}

/// Renews the guest; how long that took inside of it, or why it did not work.
pub(crate) fn renew(agent: &Agent, hostname: &str) -> Result<Duration, String> {
    let renewal = fresh(hostname).map_err(|error| format!("no random bytes: {error}"))?;
    agent
        .renew(&renewal, Instant::now() + PATIENCE)
        .map_err(|error| format!("it could not be renewed: {}", chain(&error)))
}

/// Everything new, from the kernel's generator and clock.
fn fresh(hostname: &str) -> io::Result<Renewal> {
    let mut entropy = vec![0; 64];
    fill(&mut entropy)?;
    let (machine_id, boot_id) = (random_uuid()?, random_uuid()?);
    // Last, as it grows old.
    let realtime = SystemTime::now().duration_since(UNIX_EPOCH);
    let realtime = realtime.unwrap_or_default().as_nanos();
    Ok(Renewal {
        entropy: Entropy(entropy),
        realtime_ns: u64::try_from(realtime).unwrap_or(u64::MAX),
        hostname: hostname.into(),
        machine_id: machine_id.replace('-', ""),
        boot_id,
    })
}

/// RFC 9562 section 5.4, which machine-id(5) wants for itself, too.
fn random_uuid() -> io::Result<String> {
    let mut bytes = [0; 16];
    fill(&mut bytes)?;
    let random = u128::from_be_bytes(bytes);
    let version_and_variant = 0xf000_u128 << 64 | 0b11_u128 << 62;
    let bits = random & !version_and_variant | 4_u128 << 76 | 0b10_u128 << 62;
    let digits = format!("{bits:032x}");
    let (parts, mut rest) = ([8, 4, 4, 4], digits.as_str());
    let mut uuid = String::with_capacity(36);
    for length in parts {
        let (part, after) = rest.split_at(length);
        uuid.push_str(part);
        uuid.push('-');
        rest = after;
    }
    uuid.push_str(rest);
    Ok(uuid)
}

/// All of it: the kernel gives up to 256 bytes in one piece, getrandom(2).
fn fill(bytes: &mut [u8]) -> io::Result<()> {
    let count = getrandom(&mut *bytes, GetRandomFlags::empty())?;
    if count == bytes.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_renewal_is_another_and_the_agent_would_take_it() {
        let (one, two) = (fresh("box").unwrap(), fresh("box").unwrap());
        one.check().unwrap();
        assert_eq!(one.hostname, "box");
        assert_ne!(one.entropy, two.entropy);
        assert_ne!(one.machine_id, two.machine_id);
        assert_ne!(one.boot_id, two.boot_id);
        assert_ne!(one.machine_id, one.boot_id.replace('-', ""));
        assert!(one.realtime_ns <= two.realtime_ns);
        assert!(one.realtime_ns > 1_700_000_000_000_000_000);
    }

    #[test]
    fn uuids_say_that_they_are_random() {
        for _ in 0..100 {
            let uuid = random_uuid().unwrap();
            let parts: Vec<&str> = uuid.split('-').collect();
            let lengths: Vec<usize> = parts.iter().map(|part| part.len()).collect();
            assert_eq!(lengths, [8, 4, 4, 4, 12], "{uuid}");
            assert!(parts[2].starts_with('4'), "{uuid}");
            assert!(parts[3].starts_with(['8', '9', 'a', 'b']), "{uuid}");
        }
    }
}
