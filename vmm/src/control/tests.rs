use std::io::{BufRead, BufReader};

use rundlet_jail::filter::Filter;

use super::*;
use crate::events::EventLoop;
use crate::jail::seccomp::{self, Duty};
use crate::vcpu::exit_slot::ExitSlot;

struct Rig {
    directory: tempfile::TempDir,
    events: EventLoop,
}

fn filter() -> Filter {
    Filter::compile(seccomp::vcpu(Duty::Capture)).unwrap()
}

/// A control socket over no vCPUs at all, which are paused and resumed at once.
fn rig() -> Rig {
    let directory = tempfile::tempdir().unwrap();
    let exit = ExitSlot::new().unwrap();
    let vcpus = Arc::new(Mutex::new(
        Vcpus::start(Vec::new(), &exit, &filter()).unwrap(),
    ));
    let control = Control::bind(&directory.path().join("control"), vcpus).unwrap();
    let control = Arc::new(Mutex::new(control));
    let mut events = EventLoop::new().unwrap();
    let registrar = events.subscribe(control.clone());
    control.lock().unwrap().attach(registrar).unwrap();
    Rig { directory, events }
}

impl Rig {
    fn connect(&mut self) -> BufReader<UnixStream> {
        let stream = UnixStream::connect(self.directory.path().join("control")).unwrap();
        stream
            .set_read_timeout(Some(std::time::Duration::from_secs(5)))
            .unwrap();
        self.turn();
        BufReader::new(stream)
    }

    fn turn(&mut self) {
        assert!(self.events.turn(1000).unwrap().is_continue());
    }

    fn ask(&mut self, client: &mut BufReader<UnixStream>, text: &str) -> String {
        client.get_mut().write_all(text.as_bytes()).unwrap();
        self.turn();
        let mut line = String::new();
        client.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

#[test]
fn requests_are_answered_one_line_each() {
    let mut rig = rig();
    let mut client = rig.connect();
    let running = r#"{"status":{"state":"running","vcpus":0}}"#;
    let paused = r#"{"status":{"state":"paused","vcpus":0}}"#;
    assert_eq!(rig.ask(&mut client, "{\"status\":{}}\n"), running);
    assert_eq!(rig.ask(&mut client, "{\"pause\":{}}\n"), r#"{"paused":{}}"#);
    assert_eq!(rig.ask(&mut client, "{\"status\":{}}\n"), paused);
    assert_eq!(
        rig.ask(&mut client, "{\"resume\":{}}\n"),
        r#"{"resumed":{}}"#
    );
    client.get_mut().write_all(b"{\"sta").unwrap();
    rig.turn();
    assert_eq!(
        rig.ask(&mut client, "tus\":{}}\n{\"status\":{}}\n"),
        running
    );
    let mut second = String::new();
    client.read_line(&mut second).unwrap();
    assert_eq!(second.trim_end(), running);
}

#[test]
fn nonsense_is_answered_with_an_error_and_the_connection_lives() {
    let mut rig = rig();
    let mut client = rig.connect();
    for text in [
        "\n",
        "{}\n",
        "hello\n",
        "{\"stop\":{\"now\":1}}\n",
        "{\"status\":{}} x\n",
    ] {
        let reply = rig.ask(&mut client, text);
        assert!(
            reply.starts_with(r#"{"error":{"message":"#),
            "{text:?}: {reply}"
        );
    }
    assert!(
        rig.ask(&mut client, "{\"status\":{}}\n")
            .contains("running")
    );
}

#[test]
fn a_line_without_end_is_cut_off() {
    let mut rig = rig();
    let mut client = rig.connect();
    client.get_mut().write_all(&[b'x'; LINE + 1]).unwrap();
    for _ in 0..5 {
        rig.turn();
    }
    let mut line = String::new();
    client.read_line(&mut line).unwrap();
    assert!(line.contains(&format!("at most {LINE} bytes")), "{line}");
}

#[test]
fn connections_beyond_the_limit_wait_their_turn() {
    let mut rig = rig();
    let mut clients: Vec<_> = (0..CONNECTIONS).map(|_| rig.connect()).collect();
    let mut late = UnixStream::connect(rig.directory.path().join("control")).unwrap();
    late.write_all(b"{\"status\":{}}\n").unwrap();
    assert!(rig.events.turn(50).unwrap().is_continue());
    late.set_nonblocking(true).unwrap();
    assert!(late.read(&mut [0; 16]).is_err(), "not served yet");
    clients.pop();
    for _ in 0..3 {
        assert!(rig.events.turn(50).unwrap().is_continue());
    }
    assert!(late.read(&mut [0; 16]).unwrap() > 0);
}

#[test]
fn stop_ends_the_sandbox_and_the_socket_goes_with_it() {
    let mut rig = rig();
    let mut client = rig.connect();
    client.get_mut().write_all(b"{\"stop\":{}}\n").unwrap();
    assert_eq!(rig.events.run().unwrap(), Outcome::Stopped);
    let mut line = String::new();
    client.read_line(&mut line).unwrap();
    assert_eq!(line.trim_end(), r#"{"stopping":{}}"#);
    let Rig { directory, events } = rig;
    drop(events);
    assert_eq!(directory.path().read_dir().unwrap().count(), 0);
}

#[test]
fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control");
    let exit = ExitSlot::new().unwrap();
    let vcpus = Arc::new(Mutex::new(
        Vcpus::start(Vec::new(), &exit, &filter()).unwrap(),
    ));
    drop(UnixListener::bind(&path).unwrap());
    let control = Control::bind(&path, Arc::clone(&vcpus)).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let clash = Control::bind(&path, Arc::clone(&vcpus)).unwrap_err();
    assert_eq!(clash.kind(), io::ErrorKind::AddrInUse);
    drop(control);
    std::fs::write(&path, "a file").unwrap();
    assert!(Control::bind(&path, vcpus).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"a file");
}
