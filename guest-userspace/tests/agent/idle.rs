//! An idle agent costs nothing.

use std::fs;
use std::time::Duration;

use rundlet_protocol::ExitStatus;

use crate::client::{Agent, argv};

/// Times the agent has been scheduled, /proc/PID/status.
fn wakeups(agent: &Agent) -> u64 {
    agent.memory_kib("voluntary_ctxt_switches") + agent.memory_kib("nonvoluntary_ctxt_switches")
}

#[test]
fn an_idle_agent_never_wakes_up() {
    let agent = Agent::start();
    assert_eq!(agent.run(argv(&["true"])).status, ExitStatus::Code(0));
    // An open session that runs something is idle as well.
    let (_client, _) = agent.start_command(argv(&["sleep", "1000"]));
    std::thread::sleep(Duration::from_millis(300));
    let before = wakeups(&agent);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(wakeups(&agent), before);
}

#[test]
fn an_idle_agent_is_small() {
    let agent = Agent::start();
    let fresh = agent.memory_kib("RssAnon");
    for _ in 0..20 {
        agent.sh("head -c 1000000 /dev/zero");
    }
    std::thread::sleep(Duration::from_millis(100));
    let used = agent.memory_kib("RssAnon");
    let total = agent.memory_kib("VmRSS");
    println!("RssAnon {fresh} KiB fresh, {used} KiB used; VmRSS {total} KiB");
    // What is a copy of the file's pages counts once in the guest, and differs by how it is built.
    assert!(used < 1024, "{used} KiB of memory of its own");
    if std::env::var_os("RUNDLET_INIT").is_some() {
        assert!(total < 2048, "{total} KiB resident");
    }
    assert!(fs::metadata(agent.socket()).is_ok());
}
