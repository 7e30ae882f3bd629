//! A driver that finds itself with another device, as in a clone.

use super::*;

/// The same driver on a new device that listens elsewhere.
fn resume(machine: Machine, stale: bool) -> Machine {
    let mut old = machine.device.lock().unwrap();
    assert_eq!(old.has_connections(), stale);
    let next_host_port = old.next_host_port();
    let positions = old.stop().unwrap();
    assert_eq!(positions.len(), 3);
    assert!(old.stop().unwrap().is_empty(), "it is not active any more");
    drop(old);
    let spec = VsockSpec {
        cid: u32::try_from(GUEST_CID).unwrap(),
        socket: machine.folder.path().join("w"),
    };
    let device = Vsock::new(&spec, Box::new(|| {})).unwrap();
    let device = Arc::new(Mutex::new(device));
    let mut events = EventLoop::new().unwrap();
    let registrar = events.subscribe(device.clone());
    let mut new = device.lock().unwrap();
    new.attach(registrar).unwrap();
    new.resume(stale, next_host_port);
    machine.driver.resume(&mut new, &positions);
    drop(new);
    std::fs::rename(machine.path(""), machine.path(".old")).unwrap();
    std::fs::rename(spec.socket, machine.path("")).unwrap();
    Machine {
        device,
        events,
        ..machine
    }
}

#[test]
fn a_driver_without_connections_goes_on_at_once() {
    for event_idx in [false, true] {
        let mut machine = boot(event_idx);
        machine.send(Op::Request, 99, &[]);
        machine.expect(Op::Rst);
        let mut machine = resume(machine, false);
        assert_eq!(machine.driver.take_event(), None);
        machine.connect();
    }
}

#[test]
fn a_driver_with_connections_is_told_and_nobody_let_in_before_it_has_heard() {
    for event_idx in [false, true] {
        let mut machine = boot(event_idx);
        let (mut host, _) = machine.connect();
        let mut machine = resume(machine, true);
        assert_eq!(host.read(&mut [0; 9]).unwrap(), 0, "the old one is gone");
        // What a clone's transport does after a restore.
        for ring in [&mut machine.driver.rx, &mut machine.driver.events] {
            ring.kick();
        }
        let mut early = UnixStream::connect(machine.path("")).unwrap();
        early.write_all(b"CONNECT 1024\n").unwrap();
        for _ in 0..4 {
            machine.turn();
        }
        assert!(machine.driver.receive().is_none(), "let in early");
        assert!(
            machine.device.lock().unwrap().has_connections(),
            "still to be told"
        );
        let kicks = machine.driver.events.kicks;
        assert_eq!(machine.driver.take_event(), Some(0), "TRANSPORT_RESET");
        assert_eq!(machine.driver.events.kicks, kicks + 1, "asked to say so");
        machine.expect(Op::Request);
        assert_eq!(machine.driver.take_event(), None);
    }
}

#[test]
fn a_driver_without_room_for_the_news_is_served_all_the_same() {
    let mut machine = boot(true);
    let _host = machine.connect();
    let ring = &machine.driver.events;
    ring.publish(0);
    let mut machine = resume(machine, true);
    machine.connect();
}
