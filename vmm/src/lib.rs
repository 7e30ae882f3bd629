//! The microVM monitor of Rundlet: one process, one sandbox.
//!
//! `main` → `cli` → `wire` → `spec::SandboxSpec`; `lib` exists so that tests and fuzz targets reach the
//! parsers and the device models without a virtual machine.

pub mod devices;
pub mod events;
pub mod memory;
pub mod outcome;
pub mod spec;
