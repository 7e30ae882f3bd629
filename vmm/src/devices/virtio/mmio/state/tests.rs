use std::sync::{Arc, Mutex};

use super::super::tests::{Probe, live, transport};
use super::*;
use crate::devices::virtio::mmio::INTERRUPT_USED;

/// A made-up transport with one active queue.
pub(crate) fn sample() -> TransportState {
    TransportState {
        status: 0xf,
        device_features_sel: 1,
        driver_features_sel: 1,
        driver_features: 1 << 32 | 1 << 29,
        queue_sel: 0,
        interrupt_status: 1,
        config_generation: 2,
        queues: vec![QueueState {
            size: 128,
            ready: true,
            desc: 0x80_0000,
            driver: 0x80_1000,
            device: 0x80_2000,
            position: Some(Position {
                next_avail: 65_535,
                next_used: 65_534,
            }),
        }],
    }
}

fn position(at: u16) -> Position {
    Position {
        next_avail: at,
        next_used: at.wrapping_sub(1),
    }
}

/// A live device that is this far with its queues, saved.
fn saved() -> TransportState {
    let (transport, device) = live();
    transport.interrupt().signal_config();
    device.lock().unwrap().positions = vec![(0, position(7)), (2, position(0))];
    let state = transport.save().unwrap();
    assert!(device.lock().unwrap().positions.is_empty(), "not stopped");
    state
}

fn restored(state: &TransportState) -> (MmioTransport, Arc<Mutex<Probe>>) {
    let (transport, device) = transport(Probe::default());
    transport.restore(state).unwrap();
    (transport, device)
}

#[test]
fn a_device_goes_on_where_it_stopped() {
    let state = saved();
    let (transport, device) = restored(&state);
    let probe = device.lock().unwrap();
    assert!(probe.resumed && probe.activations == 1);
    assert_eq!(probe.positions[0], (0, position(7)));
    assert_eq!(probe.positions.last(), Some(&(2, position(0))));
    drop(probe);
    assert_eq!(transport.save().unwrap(), state);
}

#[test]
fn waking_tells_both_sides_once() {
    let (transport, _) = restored(&saved());
    assert!(transport.interrupt().irqfd().read().is_err());
    transport.wake();
    assert!(transport.interrupt().irqfd().read().is_ok());
    assert_ne!(transport.interrupt().status() & INTERRUPT_USED, 0);
    for (queue, doorbell) in transport.doorbells() {
        let ready = saved().queues[usize::try_from(queue).unwrap()].ready;
        assert_eq!(doorbell.read().is_ok(), ready, "{queue}");
    }
}

#[test]
fn one_that_never_worked_is_woken_by_its_driver_only() {
    let (before, _) = transport(Probe::default());
    let state = before.save().unwrap();
    let (transport, device) = restored(&state);
    transport.wake();
    assert_eq!(device.lock().unwrap().activations, 0);
    assert!(transport.interrupt().irqfd().read().is_err());
    assert!(
        transport
            .doorbells()
            .all(|(_, doorbell)| doorbell.read().is_err())
    );
    assert_eq!(transport.save().unwrap(), state);
}

#[test]
fn a_device_that_differs_is_refused() {
    let refused = |state: &TransportState| {
        let (transport, device) = transport(Probe::default());
        let error = transport.restore(state).unwrap_err();
        assert!(device.lock().unwrap().positions.is_empty());
        error
    };
    let mut state = saved();
    state.driver_features |= 1 << 20;
    assert!(matches!(refused(&state), ResumeError::Features(bits) if bits == 1 << 20));
    let mut state = saved();
    state.driver_features &= !VERSION_1;
    assert!(matches!(refused(&state), ResumeError::Features(VERSION_1)));
    let mut state = saved();
    state.queues.pop();
    assert!(matches!(
        refused(&state),
        ResumeError::Queues { here: 3, saved: 2 }
    ));
    let mut state = saved();
    state.queues[0].desc = u64::MAX - 15;
    assert!(matches!(refused(&state), ResumeError::Activate(_)));
}

#[test]
fn limits_are_checked() {
    let mut state = sample();
    assert_eq!(state.check(), Ok(()));
    state.queues = vec![state.queues[0].clone(); 17];
    assert!(state.check().is_err());
    state.queues.clear();
    assert!(state.check().is_err());
    assert!(is_queue_size(128) && !is_queue_size(100) && !is_queue_size(0) && !is_queue_size(2048));
}
