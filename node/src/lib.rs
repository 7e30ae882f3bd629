//! Rundlet's node: images, sandboxes and the talk with their agents, for the command line and (later)
//! for the daemon.
//!
//! One sandbox, from here: [`image::store`] finds and locks the image, [`scratch`] the template of the
//! writable layer; [`sandbox`] starts the block backend and the VMM and waits for the guest; [`agent`]
//! runs the command; [`run`] is the recipe of `rundlet run` over these.
//!
//! Many, from here: [`template`] keeps and builds what clones are made of, [`sandbox::Fleet`] makes them,
//! [`fleet`] is the recipe of `rundlet fleet`.
//!
//! What a daemon needs: [`host::config`] says how it shall be, [`pool`] makes cgroups ahead.

pub mod agent;
pub mod api;
pub mod bench;
pub mod claim;
pub mod client;
pub mod digest;
pub mod doctor;
pub mod error;
pub mod fleet;
pub mod host;
pub mod image;
mod locks;
pub mod metrics;
pub mod notify;
pub mod places;
pub mod pool;
pub mod run;
pub mod sandbox;
pub mod scratch;
pub mod template;
pub mod tools;
