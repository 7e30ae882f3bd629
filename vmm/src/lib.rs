//! The microVM monitor of Rundlet: one process, one sandbox.
//!
//! One cold boot: `main` reads the command line ([`cli`]) and the spec ([`wire`], then [`spec`], valid from
//! there on) → [`sandbox::boot`], the recipe: backends are dialled in the background, [`kvm`] makes the
//! machine, [`memory`] its RAM, [`boot`] puts the kernel in, [`devices`] are built and wired, [`vcpu`]s
//! set up → [`vcpu::thread`] → [`vcpu::Vcpu::step`] → KVM_RUN. From then on the main thread sits in
//! [`events`] and the vCPU threads in the guest; they meet in the devices, behind one lock each.
//!
//! One template: the control socket's `capture` → [`template::capture`]: vCPUs paused, devices stopped, each
//! gives its state, memory last. One clone: [`template::Template::open`] verifies everything →
//! [`sandbox::restore`], the other recipe over the same steps: memory mapped over the template's, devices
//! and vCPUs continued instead of begun.
//!
//! A library, so that tests and fuzz targets reach the parsers and device models without a guest:
//! [`wire::Spec::parse`], [`wire::Request::parse`], [`template::format::parse`], [`devices::virtio::mmio::MmioTransport`].

pub mod boot;
pub mod bus;
pub mod cli;
pub mod control;
pub mod devices;
pub mod events;
pub mod jail;
pub mod kvm;
pub mod lifeline;
mod lock;
pub mod memory;
pub mod outcome;
pub mod sandbox;
pub mod spec;
pub mod template;
pub mod timeline;
pub mod vcpu;
pub mod wire;
pub mod zygote;
