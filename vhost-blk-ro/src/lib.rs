//! vhost-user block backend: shared read-only images and throw-away writable layers.
//!
//! The walk of one sector: kick → [`session`]'s worker → [`queue`] drains the ring → [`request`]
//! parses the descriptor chain → [`execute`] finds the place on the [`disk`] → [`iov`] lets the
//! kernel copy from the page cache straight into guest memory → status byte, used ring, interrupt.
//!
//! Imports go only inward: `daemon`/`listener` → `session` → `queue` → `request`, `execute` →
//! `disk` → `image`, `scratch` → `iov`.

pub mod cli;
pub mod config;
pub mod daemon;
pub mod descriptors;
pub mod disk;
pub mod event;
pub mod execute;
pub mod figures;
pub mod image;
pub mod iov;
pub mod jail;
pub mod listener;
pub mod queue;
pub mod request;
pub mod scratch;
pub mod session;
pub mod socket;
pub mod stats;
