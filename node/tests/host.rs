//! A host with real processes around it, and what is left when they are killed: the stand-ins of `tests/run.rs`,
//! and a daemon without an API (`examples/daemon`). No KVM, no guest, no cgroups.

#[cfg(test)]
#[path = "host/cycles.rs"]
mod cycles;
#[cfg(test)]
#[path = "host/daemon.rs"]
mod daemon;
#[cfg(test)]
#[path = "host/ends.rs"]
mod ends;
#[cfg(test)]
#[path = "run/fixture.rs"]
#[allow(dead_code)]
mod fixture;
#[cfg(test)]
#[path = "host/life.rs"]
mod life;
#[cfg(test)]
#[path = "host/recovery.rs"]
mod recovery;
#[cfg(test)]
#[path = "host/renewal.rs"]
mod renewal;
