//! The agent as an ordinary process on a unix socket, driven as the host would.
//!
//! `RUNDLET_INIT` names another binary to test, such as the static one that ships.

#[cfg(test)]
mod client;
#[cfg(test)]
mod endings;
#[cfg(test)]
mod exec;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod idle;
#[cfg(test)]
mod streams;
#[cfg(test)]
mod templates;
#[cfg(test)]
mod terminal;
