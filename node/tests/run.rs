//! `rundlet` as a user calls it, with stand-ins for the VMM and the block backend (`examples/double.rs`)
//! around the real agent. No KVM, no guest.

#[cfg(test)]
#[path = "run/benches.rs"]
mod benches;
#[cfg(test)]
#[path = "run/fixture.rs"]
mod fixture;
#[cfg(test)]
#[path = "run/fleets.rs"]
mod fleets;
#[cfg(test)]
#[path = "run/templates.rs"]
mod templates;
#[cfg(test)]
#[path = "run/cases.rs"]
mod tests;
