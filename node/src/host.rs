//! The node as a daemon has it: sandboxes that outlive the daemon, in cgroups made ahead.

pub mod config;
pub mod model;
