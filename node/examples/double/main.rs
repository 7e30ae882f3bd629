//! Stand-in for the peers of `rundlet run`, `rundlet fleet` and a host, chosen by the name it is called by; the
//! tests in `node/tests` put it under those names. There is no guest: commands run on the host, under the real
//! agent (`RUNDLET_DOUBLE_AGENT`, a rundlet-init), so what is tested is the node's end of everything.
//!
//! `RUNDLET_DOUBLE` says what goes wrong: see [`Trouble`].

mod backend;
mod control;
mod zygote;

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

use rundlet_protocol::frame::{self, Frame};
use rundlet_protocol::{Reply, Request, VERSION};
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
    /// Every template is stale.
    Stale,
    /// Nothing can be captured.
    NoCapture,
    /// The zygote makes no clone.
    ZygoteRefuses,
    /// The VMM ends when a clone is to be renewed.
    DiesAtRenewal,
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
            Ok("stale") => Self::Stale,
            Ok("no-capture") => Self::NoCapture,
            Ok("zygote-refuses") => Self::ZygoteRefuses,
            Ok("dies-at-renewal") => Self::DiesAtRenewal,
            _ => Self::Nothing,
        }
    }
}

fn main() -> Anything {
    let name = env::args().next().unwrap_or_default();
    if env::args().nth(1).as_deref() == Some("zygote") {
        return zygote::serve(argument("--template").as_deref());
    }
    let mut input = String::new();
    io::stdin().read_to_string(&mut input)?;
    let input: Value = serde_json::from_str(&input)?;
    match Path::new(&name).file_name().and_then(|name| name.to_str()) {
        Some("rundlet-vmm") => vmm(&input),
        Some("vhost-blk-ro") => backend::serve(&input),
        other => Err(format!("called by the unknown name {other:?}").into()),
    }
}

/// The value of an option.
fn argument(name: &str) -> Option<PathBuf> {
    let mut args = env::args().skip_while(|arg| arg != name);
    args.nth(1).map(PathBuf::from)
}

/// Blocks until the lifeline is cut, or for good where there is none.
fn wait_for_the_end() -> Anything {
    let lifeline = argument("--lifeline").filter(|_| Trouble::wanted() != Trouble::Deaf);
    let Some(fd) = lifeline else {
        loop {
            thread::sleep(Duration::from_secs(1));
        }
    };
    File::open(Path::new("/proc/self/fd").join(fd))?.read_to_end(&mut Vec::new())?;
    Ok(())
}

fn path(value: &Value) -> Result<PathBuf, Box<dyn Error>> {
    Ok(value
        .as_str()
        .ok_or_else(|| format!("no path: {value}"))?
        .into())
}

fn say(event: &Value) {
    let mut out = io::stdout().lock();
    // Who listened may have gone, which is no reason to end.
    let _ = writeln!(out, "{event}").and_then(|()| out.flush());
}

fn vmm(spec: &Value) -> Anything {
    if let Some(template) = argument("--template")
        && let Some((reason, code, message)) = unfit(&template, Some(&spec["binding"]))
    {
        say(&serde_json::json!({"event": "exit", "reason": reason, "message": message}));
        std::process::exit(code);
    }
    let mut disks = Vec::new();
    for disk in spec["disks"].as_array().ok_or("no disks")? {
        disks.push(UnixStream::connect(path(&disk["socket"])?)?);
    }
    if let Some(control) = argument("--control") {
        let listener = UnixListener::bind(control)?;
        thread::spawn(move || control::serve(&listener));
    }
    let vsock = path(&spec["vsock"]["socket"])?;
    let mut console: Box<dyn Write> = match spec.pointer("/console/path") {
        Some(place) => Box::new(File::create(path(place)?)?),
        None => Box::new(io::sink()),
    };
    if let Some(words) = spec.pointer("/kernel/cmdline") {
        writeln!(
            console,
            "Linux version 6.12 (double)\ncommand line: {words}"
        )?;
    }
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
    let ready = PathBuf::from(format!("{}_1025", vsock.display()));
    // A machine's processes go with it, also if it is killed.
    let child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL"])
        .arg(program)
        .arg("serve")
        .arg(vsock.with_file_name("agent.sock"))
        // A clone's agent was ready long ago, and nobody listens for it.
        .args(ready.exists().then_some(&ready))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    let last = if ready.exists() {
        "agent_ready"
    } else {
        "running"
    };
    wait_for(&vsock.with_file_name("agent.sock"))?;
    let instants = serde_json::json!({"exec": 0, "kvm": 5, last: 1000});
    say(&serde_json::json!({"event": "timeline", "instants_us": instants}));
    Ok(child)
}

fn wait_for(path: &Path) -> Anything {
    for _ in 0..1000 {
        if path.exists() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(10));
    }
    Err(format!("{} does not appear", path.display()).into())
}

/// Why a template cannot be used, if it cannot. One of ours holds its binding as its state, and words.
fn unfit(template: &Path, binding: Option<&Value>) -> Option<(&'static str, i32, &'static str)> {
    let read = |name| fs::read_to_string(template.join(name));
    let whole = read("memory").is_ok_and(|it| it == "memory") && read("window").is_ok();
    let state: Option<Value> = serde_json::from_str(&read("state").unwrap_or_default()).ok();
    match state {
        Some(state) if whole && binding.is_none_or(|binding| state == *binding) => {
            let stale = Trouble::wanted() == Trouble::Stale;
            stale.then_some(("template_stale", 3, "double: another processor"))
        }
        Some(_) if whole => Some(("template_stale", 3, "double: another binding")),
        _ => Some(("template_damaged", 4, "double: no memory")),
    }
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

fn request(from: &mut UnixStream) -> Result<Request, Box<dyn Error>> {
    match frame::read(from, &mut Vec::new())? {
        Some(Frame::Control(json)) => Ok(frame::parse_message(json)?),
        other => Err(format!("{other:?} is no request").into()),
    }
}

/// The agent's socket has a name a moment before it listens.
fn dial(agent: &Path) -> io::Result<UnixStream> {
    for _ in 0..1000 {
        match UnixStream::connect(agent) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                thread::sleep(Duration::from_millis(10));
            }
            other => return other,
        }
    }
    UnixStream::connect(agent)
}

/// One connection from the host: `CONNECT 1024`, the greeting, then the agent.
fn serve(mut host: UnixStream, agent: &Path) -> Anything {
    let mut line = [0; 13];
    host.read_exact(&mut line)?;
    if &line != b"CONNECT 1024\n" {
        return Err(format!("unknown request {line:?}").into());
    }
    host.write_all(b"OK 1073741824\n")?;
    let hello = Request::Hello { version: VERSION };
    frame::write_message(&mut host, &Reply::Hello { version: VERSION })?;
    let (theirs, wish) = (request(&mut host)?, request(&mut host)?);
    if theirs != hello {
        return Err(format!("{theirs:?} is no greeting").into());
    }
    if wish == Request::Shutdown {
        frame::write_message(&mut host, &Reply::ShuttingDown)?;
        // The agent would power off the machine that it runs on.
        say(&serde_json::json!({"event": "exit", "reason": "power_off", "message": null}));
        std::process::exit(0);
    }
    if Trouble::wanted() == Trouble::DiesAtRenewal && matches!(wish, Request::Renew(_)) {
        let why = "double: no such instruction";
        say(&serde_json::json!({"event": "exit", "reason": "internal_error", "message": why}));
        std::process::exit(12);
    }
    if wish == (Request::Prepare {}) {
        // The agent has no cgroups here to freeze anything with.
        return Ok(frame::write_message(&mut host, &Reply::Prepared {})?);
    }
    let mut guest = dial(agent)?;
    frame::write_message(&mut guest, &hello)?;
    frame::read(&mut guest, &mut Vec::new())?;
    frame::write_message(&mut guest, &wish)?;
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
