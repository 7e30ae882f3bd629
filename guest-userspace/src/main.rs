//! PID 1 and agent of a Rundlet sandbox.
//!
//! As PID 1 it boots the guest ([`boot`]) and serves the host over vsock. Started as any other process,
//! `rundlet-init serve SOCKET [READY_SOCKET]` serves on a unix socket instead: the same agent without
//! a machine around it, for tests and for work on the host's side. It freezes and thaws its own commands
//! only, and a renewal changes nothing of the machine that it runs on.

mod agent;
mod cgroup;
mod cmdline;
mod command;
mod connection;
mod mounts;
mod network;
mod power;
mod process;
mod program;
mod quiet;
mod reap;
mod renewal;
mod rootfs;
mod session;
mod streams;
mod sys;
mod user;
mod watch;

use std::convert::Infallible;
use std::error::Error;
use std::process::ExitCode;

use rundlet_protocol::{Ready, VERSION};
use rustix::time::{ClockId, clock_gettime};

use agent::Agent;
use cgroup::Cgroups;
use cmdline::BootConfig;
use renewal::NoMachine;
use renewal::machine::Machine;

fn main() -> ExitCode {
    let result = if rustix::process::getpid().is_init() {
        boot().map(|never| match never {})
    } else {
        serve()
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            power::report(&*error);
            // As PID 1 this is a kernel panic, which is how the host learns of it.
            ExitCode::FAILURE
        }
    }
}

/// The guest's boot.
fn boot() -> Result<Infallible, Box<dyn Error>> {
    let init_us = since_boot_us();
    mounts::early()?;
    process::protect_agent()?;
    let config = BootConfig::read()?;
    rootfs::assemble(&config)?;
    rootfs::enter()?;
    mounts::api()?;
    quiet::settle_down()?;
    network::set_up(&config.hostname)?;
    let listener = network::listen_vsock()?;
    let cgroups = Cgroups::open(Some(mounts::CGROUP));
    let mut agent = Agent::new(listener, cgroups, Box::new(Machine::default()))?;
    let ready = ready_since(init_us);
    network::dial_host()
        .and_then(|socket| agent.announce(socket, ready))
        .ok();
    agent.run()?;
    Err(power::off().into())
}

/// The agent alone, as an ordinary process.
fn serve() -> Result<(), Box<dyn Error>> {
    let init_us = since_boot_us();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (socket, ready_socket) = match arguments.as_slice() {
        [serve, socket] if serve == "serve" => (socket, None),
        [serve, socket, ready] if serve == "serve" => (socket, Some(ready)),
        _ => return Err("usage, unless PID 1: rundlet-init serve SOCKET [READY_SOCKET]".into()),
    };
    process::adopt_orphans()?;
    let listener = network::listen_unix(socket)?;
    let cgroup = std::env::var("RUNDLET_CGROUP").ok();
    let cgroups = Cgroups::open(cgroup.as_deref());
    let mut agent = Agent::new(listener, cgroups, Box::new(NoMachine))?;
    if let Some(ready_socket) = ready_socket {
        agent.announce(network::dial_unix(ready_socket)?, ready_since(init_us))?;
    }
    Ok(agent.run()?)
}

fn ready_since(init_us: u64) -> Ready {
    Ready {
        version: VERSION,
        init_us,
        ready_us: since_boot_us(),
    }
}

/// `CLOCK_BOOTTIME`, in microseconds.
fn since_boot_us() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let micros = now.tv_sec.saturating_mul(1_000_000) + now.tv_nsec / 1_000;
    micros.try_into().unwrap_or(0)
}
