//! The JSON that our programs are started with: specs of sandboxes, control requests, and the
//! configuration of the block backend. What is accepted must keep its promises.

#![no_main]

use std::collections::HashSet;

use libfuzzer_sys::fuzz_target;
use rundlet_vmm::memory::layout::{LOW_RAM_LIMIT, MIB};
use rundlet_vmm::memory::{Kind, regions};
use rundlet_vmm::spec::{self, SandboxSpec};
use rundlet_vmm::wire;
use vhost_blk_ro::config::Config;

fuzz_target!(|data: &[u8]| {
    match wire::Spec::parse(data).map(SandboxSpec::try_from) {
        Ok(Ok(spec)) => check(&spec),
        Ok(Err(error)) => assert_names_a_field(&error.to_string()),
        Err(error) => assert_names_a_field(&error.to_string()),
    }
    if let Err(error) = wire::Request::parse(data) {
        assert_names_a_field(&error.to_string());
    }
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(config) = Config::parse(text)
    {
        assert!(!config.listeners.is_empty());
        let sockets: HashSet<_> = config.listeners.iter().map(|l| &l.socket).collect();
        assert_eq!(sockets.len(), config.listeners.len());
    }
});

/// "field: what is wrong with it"
fn assert_names_a_field(error: &str) {
    assert!(error.contains(": "), "{error}");
}

fn check(spec: &SandboxSpec) {
    assert!(spec::VCPUS.contains(&spec.vcpus));
    assert!(spec.devices.disks.len() <= spec::MAX_DISKS);
    let ids: HashSet<_> = spec.devices.disks.iter().map(|disk| &disk.id).collect();
    assert_eq!(ids.len(), spec.devices.disks.len());
    for disk in &spec.devices.disks {
        assert!(disk.queue_size.is_power_of_two() && (1..=16).contains(&disk.queues));
    }
    assert!(spec.devices.vsock.as_ref().is_none_or(|vsock| vsock.cid > 2));
    assert!(!spec.kernel.cmdline.contains(['\n', '\0']));
    // The memory map: in order, without overlap, all of it, one window of the size asked for.
    let pieces = regions(&spec.memory);
    let mut end = 0;
    for (range, kind) in &pieces {
        assert!(range.len > 0 && range.start >= end);
        end = range.end();
        assert!(end <= LOW_RAM_LIMIT || range.start >= 4096 * MIB);
        if *kind == Kind::Window {
            assert_eq!(range.len, spec.memory.window_bytes());
        }
    }
    let total: u64 = pieces.iter().map(|(range, _)| range.len).sum();
    assert_eq!(total, spec.memory.bytes());
    let windows = pieces.iter().filter(|(_, kind)| *kind == Kind::Window);
    assert_eq!(windows.count(), 1);
}
