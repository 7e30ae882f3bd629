//! Stand-in for both peers of `rundlet run`, chosen by the name it is called by; the tests in
//! `node/tests` put it under those names. There is no guest: commands run on the host, under the real
//! agent (`RUNDLET_DOUBLE_AGENT`, a rundlet-init), so what is tested is the node's end of everything.
//!
//! `RUNDLET_DOUBLE` says what goes wrong: see [`Trouble`].

use std::env;
use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::Value;

type Anything = Result<(), Box<dyn Error>>;

/// What goes wrong.
#[derive(Clone, Copy, PartialEq)]
enum Trouble {
    Nothing,
    /// The guest's kernel panics during the boot.
    Panic,
    /// The guest never says anything.
    Silence,
    /// As `Silence`, and the lifelines are ignored.
    Deaf,
    /// What comes to the ready port is no frame.
    Garbage,
    /// The block backend ends once the guest is ready.
    BackendLost,
    /// The block backend refuses its configuration.
    BackendRefuses,
    /// The VMM is killed once the guest is ready.
    VmmKilled,
}

impl Trouble {
    fn wanted() -> Self {
        match env::var("RUNDLET_DOUBLE").as_deref() {
            Ok("panic") => Self::Panic,
            Ok("silence") => Self::Silence,
            Ok("deaf") => Self::Deaf,
            Ok("garbage") => Self::Garbage,
            Ok("backend-lost") => Self::BackendLost,
            Ok("backend-refuses") => Self::BackendRefuses,
            Ok("vmm-killed") => Self::VmmKilled,
            _ => Self::Nothing,
        }
    }
}

fn main() -> Anything {
    let name = env::args().next().unwrap_or_default();
    let mut input = String::new();
    io::stdin().read_to_string(&mut input)?;
    let input: Value = serde_json::from_str(&input)?;
    match Path::new(&name).file_name().and_then(|name| name.to_str()) {
        Some("rundlet-vmm") => vmm(&input),
        Some("vhost-blk-ro") => backend(&input),
        other => Err(format!("called by the unknown name {other:?}").into()),
    }
}

fn lifeline() -> Result<PathBuf, Box<dyn Error>> {
    let mut args = env::args().skip_while(|arg| arg != "--lifeline");
    let fd = args.nth(1).ok_or("no --lifeline")?;
    Ok(Path::new("/proc/self/fd").join(fd))
}

/// Blocks until the lifeline is cut.
fn wait_for_the_end() -> Anything {
    if Trouble::wanted() == Trouble::Deaf {
        loop {
            thread::sleep(Duration::from_secs(1));
        }
    }
    File::open(lifeline()?)?.read_to_end(&mut Vec::new())?;
    Ok(())
}

fn path(value: &Value) -> Result<PathBuf, Box<dyn Error>> {
    Ok(value
        .as_str()
        .ok_or_else(|| format!("no path: {value}"))?
        .into())
}

fn say(event: &Value) {
    println!("{event}");
}

fn backend(config: &Value) -> Anything {
    if Trouble::wanted() == Trouble::BackendRefuses {
        return Err("listeners[0].disk.image.path: double says no".into());
    }
    let mut sockets = Vec::new();
    for listener in config["listeners"].as_array().ok_or("no listeners")? {
        let disk = &listener["disk"];
        let file = path(
            disk.pointer("/image/path")
                .or_else(|| disk.pointer("/scratch/template"))
                .ok_or("no disk")?,
        )?;
        File::open(&file)?;
        let socket = path(&listener["socket"])?;
        sockets.push((UnixListener::bind(&socket)?, socket));
    }
    say(&serde_json::json!({"event": "listening"}));
    if Trouble::wanted() == Trouble::BackendLost {
        // As long as the guest takes to come up; the VMM's double leaves a mark then.
        let mark = sockets[0].1.with_file_name("ready-mark");
        while !mark.exists() {
            thread::sleep(Duration::from_millis(10));
        }
        return Err("double: disk caught fire".into());
    }
    wait_for_the_end()?;
    for (_, socket) in &sockets {
        // Gone with the run directory, perhaps.
        let _ = fs::remove_file(socket);
    }
    Ok(())
}

fn vmm(spec: &Value) -> Anything {
    for disk in spec["disks"].as_array().ok_or("no disks")? {
        UnixStream::connect(path(&disk["socket"])?)?;
    }
    let vsock = path(&spec["vsock"]["socket"])?;
    let mut console = File::create(path(&spec["console"]["path"])?)?;
    writeln!(
        console,
        "Linux version 6.12 (double)\ncommand line: {}",
        spec["kernel"]["cmdline"]
    )?;
    let listener = UnixListener::bind(&vsock)?;
    let agent: Arc<Mutex<Option<Child>>> = Arc::default();
    match Trouble::wanted() {
        Trouble::Panic => {
            writeln!(console, "\x1b[31mKernel panic - not syncing: double")?;
            let reason =
                serde_json::json!({"event": "exit", "reason": "panic", "message": "exit port"});
            say(&reason);
            std::process::exit(11);
        }
        Trouble::Garbage => {
            let mut ready = UnixStream::connect(format!("{}_1025", vsock.display()))?;
            ready.write_all(&[0xff; 64])?;
        }
        Trouble::Silence | Trouble::Deaf => {}
        _ => *agent.lock().map_err(|_| "lock")? = Some(start_agent(&vsock)?),
    }
    let after = vsock.clone();
    thread::spawn(move || after_ready(&after));
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let socket = vsock.with_file_name("agent.sock");
            thread::spawn(move || {
                if let Err(error) = serve(stream, &socket) {
                    eprintln!("{error}");
                }
            });
        }
    });
    wait_for_the_end()?;
    if let Some(agent) = &mut *agent.lock().map_err(|_| "lock")? {
        agent.kill()?;
        agent.wait()?;
    }
    say(&serde_json::json!({"event": "exit", "reason": "stopped", "message": null}));
    Ok(())
}

fn start_agent(vsock: &Path) -> Result<Child, Box<dyn Error>> {
    let program = env::var_os("RUNDLET_DOUBLE_AGENT").ok_or("no RUNDLET_DOUBLE_AGENT")?;
    let child = Command::new(program)
        .arg("serve")
        .arg(vsock.with_file_name("agent.sock"))
        .arg(format!("{}_1025", vsock.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    let instants = serde_json::json!({"exec": 0, "kvm": 5, "agent_ready": 1000});
    say(&serde_json::json!({"event": "timeline", "instants_us": instants}));
    Ok(child)
}

/// Troubles that come once a command runs.
fn after_ready(vsock: &Path) {
    let mark = vsock.with_file_name("ready-mark");
    let trouble = Trouble::wanted();
    if trouble == Trouble::BackendLost || trouble == Trouble::VmmKilled {
        while !mark.exists() {
            thread::sleep(Duration::from_millis(10));
        }
    }
    if trouble == Trouble::VmmKilled {
        std::process::abort();
    }
    if trouble == Trouble::BackendLost {
        // A VMM notices the closed sockets a moment later.
        thread::sleep(Duration::from_millis(50));
        say(
            &serde_json::json!({"event": "exit", "reason": "backend_lost", "message": "disk root"}),
        );
        std::process::exit(13);
    }
}

/// One connection from the host: `CONNECT 1024`, then the agent.
fn serve(mut host: UnixStream, agent: &Path) -> Anything {
    let mut line = [0; 13];
    host.read_exact(&mut line)?;
    if &line != b"CONNECT 1024\n" {
        return Err(format!("unknown request {line:?}").into());
    }
    let guest = UnixStream::connect(agent)?;
    host.write_all(b"OK 1073741824\n")?;
    let (mut from_guest, mut to_host) = (guest.try_clone()?, host.try_clone()?);
    let back = thread::spawn(move || {
        let copied = io::copy(&mut from_guest, &mut to_host);
        let _ = to_host.shutdown(Shutdown::Write);
        copied
    });
    let mut to_guest = guest;
    // Ends as well when the other side has gone.
    let _ = io::copy(&mut host, &mut to_guest);
    let _ = to_guest.shutdown(Shutdown::Write);
    let _ = back.join();
    Ok(())
}
