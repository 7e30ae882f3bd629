use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use super::fixture::{SOON, Served, answer, built, eventually};

#[test]
fn an_end_in_order_finishes_what_is_under_way() {
    let mut served = Served::new();
    let id = served.create(&json!({}));
    let head = ["Content-Type: application/json", "Connection: close"];
    let exec = json!({"argv": ["sh", "-c", "sleep 1; echo done"]}).to_string();
    let exec = served.send("POST", &format!("/v1/sandboxes/{id}/exec"), &head, &exec);
    let events = served.send("GET", "/v1/events?since=0", &head, "");
    let waited = served.send("GET", &format!("/v1/sandboxes/{id}/wait"), &head, "");
    let mut idle = served.connect();
    let phase = || served.get(&format!("/v1/sandboxes/{id}")).json()["phase"].clone();
    eventually("the command runs", || phase() == "running");
    served.tell(Signal::TERM);
    assert_eq!(answer(exec).json()["stdout"], "done\n");
    assert!(answer(events).body.contains(&id));
    assert_eq!(answer(waited).problem().0, "closing");
    assert_eq!(idle.read(&mut [0]).unwrap(), 0);
    assert_eq!(served.code(), Some(0));
    assert!(!served.socket().exists());
}

#[test]
fn a_stale_socket_is_replaced_and_a_living_daemon_is_named() {
    let mut served = Served::new();
    let (program, _) = built();
    let (socket, second) = (served.socket(), served.path("second"));
    let start = || {
        let mut command = Command::new(program);
        command.arg("--socket").arg(&socket);
        command.arg("--directory").arg(&second);
        command
    };
    let output = start().output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(
        words.contains("Living") && words.contains("api.sock"),
        "{words}"
    );
    served.tell(Signal::KILL);
    served.code();
    assert!(
        served.socket().exists(),
        "a killed daemon leaves its socket"
    );
    let mut second = start().spawn().unwrap();
    eventually("the second answers", || {
        UnixStream::connect(served.socket()).is_ok()
    });
    second.kill().unwrap();
    second.wait().unwrap();
}

/// An answer over TCP, whole.
fn over_tcp(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn systemd_passes_sockets_and_hears_of_begin_and_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("passed.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let notify = UnixDatagram::bind(directory.path().join("notify")).unwrap();
    notify.set_read_timeout(Some(SOON)).unwrap();
    let hear = || {
        let mut bytes = [0; 64];
        let length = notify.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    };
    let metrics = TcpListener::bind("127.0.0.1:0").unwrap();
    let metrics_at = metrics.local_addr().unwrap();
    // As systemd does it: descriptors from 3 on, in the order of its units' names, and our own process id.
    let script = r#"exec 3>&1 4<&0 0</dev/null 1>&2; LISTEN_PID=$$ LISTEN_FDS=2 exec "$@""#;
    let (program, _) = built();
    let mut daemon = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(program)
        .args(["--socket", "/nowhere/api.sock", "--directory"])
        .arg(directory.path().join("node"))
        .env("NOTIFY_SOCKET", directory.path().join("notify"))
        .stdin(OwnedFd::from(listener))
        .stdout(OwnedFd::from(metrics))
        .spawn()
        .unwrap();
    assert_eq!(hear(), "READY=1");
    let client = rundlet_node::client::Client::new(&path).unwrap();
    assert_eq!(client.health().unwrap().pid, daemon.id());
    assert!(over_tcp(metrics_at, "/metrics").contains("rundlet_pool_slots"));
    let pid = rustix::process::Pid::from_raw(i32::try_from(daemon.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(hear(), "STOPPING=1");
    assert!(daemon.wait().unwrap().success());
    assert!(path.exists(), "it is systemd's to remove");
}

#[test]
fn figures_are_served_over_tcp_and_nothing_else_is() {
    // A port that was free a moment ago.
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let _served = Served::with(|command| {
        command.arg("--metrics").arg(address.to_string());
    });
    eventually("it listens", || TcpStream::connect(address).is_ok());
    assert!(over_tcp(address, "/metrics").contains("rundlet_pool_slots"));
    assert!(over_tcp(address, "/v1/sandboxes").starts_with("HTTP/1.1 404"));
}
