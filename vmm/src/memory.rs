//! Guest RAM: always private to this process, except the I/O window.

/// Guest-physical memory as the devices see it: clones share the mappings.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;
