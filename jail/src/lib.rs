//! The walls around a process: what its root is ([`root`]), who it is and what it may ([`rights`]), and which
//! system calls it has ([`filter`]).
//!
//! A process goes in by itself, one wall after the other, when everything that it needs is open:
//! [`root::enter`], [`rights::give_up`], and each of its threads [`filter::Filter::load`]. There is no way
//! back. What must hold: the first two are for a process of one thread, since the kernel keeps identity and
//! capabilities for each thread; [`rights::give_up`] refuses otherwise, and threads that start later
//! inherit.

pub mod filter;
pub mod namespaces;
pub mod panic;
pub mod rights;
pub mod root;
