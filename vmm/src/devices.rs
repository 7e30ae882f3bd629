//! The devices of a sandbox, and how they are put together.
//!
//! Every virtio device is built from its spec (`Vsock::new(&VsockSpec, ready: Box<dyn FnOnce() + Send>)`,
//! where `ready` is to be called at the guest's first connection request to host port 1025), put behind
//! a mutex and given to the event loop and to its MMIO transport.

pub mod virtio;
pub mod vsock;
