//! Rundlet's own two ways: a cold boot with a block backend of its own, and a clone of a template in a
//! fleet, whose block backend and zygote all share.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use rundlet_protocol::Ready;

use super::guest::GuestSetup;
use super::system::{Process, Role, Sandbox, StartFailure, Started, Step, System, steps};
use crate::sandbox::{
    self, Boot, Console, Event, Fleet, Member, MemberInstants, Origin, SandboxSpec, Wish,
};

/// For a cold boot: seconds, unless hundreds boot at once on an emulated processor.
const BOOT: Duration = Duration::from_secs(300);

/// How long after the agent's word the VMM's own may take.
const HINDSIGHT: Duration = Duration::from_secs(1);

/// Clones of a template.
pub(super) struct Clones {
    pub(super) fleet: Fleet,
}

struct CloneSandbox {
    member: Member,
    started: Started,
}

impl System for Clones {
    fn start(&self, id: &str) -> Result<Box<dyn Sandbox>, StartFailure> {
        let member = self.fleet.clone_one(Wish {
            id: id.into(),
            ..Wish::default()
        })?;
        let started = clone_started(member.instants());
        Ok(Box::new(CloneSandbox { member, started }))
    }

    fn shared(&self) -> Vec<Process> {
        let pids = self.fleet.pids();
        let process = |pid, role| Process { pid, role };
        let mut all = vec![
            process(pids.backend, Role::Backend),
            process(pids.janitor, Role::Helper),
        ];
        all.extend(pids.zygote.map(|pid| process(pid, Role::Helper)));
        all
    }
}

impl Sandbox for CloneSandbox {
    fn started(&self) -> &Started {
        &self.started
    }

    fn processes(&self) -> Vec<Process> {
        vec![Process {
            pid: self.member.pid(),
            role: Role::Vmm,
        }]
    }
}

/// The VMM's instants count from the moment at which the zygote had the request; the node saw it run a
/// little later than it did, when it had read so.
fn clone_started(at: &MemberInstants) -> Started {
    let until_running = at.running.saturating_duration_since(at.requested);
    let vmm = vmm_steps(&at.vmm_us);
    let in_vmm = vmm.iter().map(|step| step.took).sum();
    let renewal = at.ready.saturating_duration_since(at.running);
    let in_guest = at.renewed.min(renewal);
    let mut steps = vec![Step {
        name: "node and zygote".into(),
        took: until_running.saturating_sub(in_vmm),
    }];
    steps.extend(vmm);
    steps.push(Step {
        name: "agent: until it is asked and has answered".into(),
        took: renewal.saturating_sub(in_guest),
    });
    steps.push(Step {
        name: "agent: renewal".into(),
        took: in_guest,
    });
    Started {
        requested: at.requested,
        ready: at.ready,
        steps,
    }
}

/// Differences of instants that are named after what is done then.
fn vmm_steps(instants_us: &BTreeMap<String, u64>) -> Vec<Step> {
    let mut instants: Vec<_> = instants_us.iter().map(|(name, at)| (*at, name)).collect();
    instants.sort_unstable();
    let mut last = 0;
    instants.retain(|(_, name)| name.as_str() != "agent_ready");
    let step = |(at, name): (u64, &String)| {
        let took = Duration::from_micros(at.saturating_sub(last));
        last = at;
        let name = format!("VMM: {name}");
        Step { name, took }
    };
    instants.into_iter().map(step).collect()
}

/// Cold boots.
pub(super) struct Cold {
    pub(super) guest: Arc<GuestSetup>,
    pub(super) runtime: PathBuf,
}

struct ColdSandbox {
    sandbox: sandbox::Sandbox,
    started: Started,
}

impl System for Cold {
    fn start(&self, id: &str) -> Result<Box<dyn Sandbox>, StartFailure> {
        let requested = Instant::now();
        let (sender, events) = mpsc::channel();
        let sink: sandbox::Sink = Arc::new(move |event| {
            // Nobody listens any more once it is ready.
            let _ = sender.send((Instant::now(), event));
        });
        let spec = self.spec(id)?;
        let mut sandbox = sandbox::Sandbox::start(&spec, &self.runtime, &sink)?;
        match await_ready(&events, requested, &sandbox) {
            Ok(started) => {
                sandbox.ready();
                Ok(Box::new(ColdSandbox { sandbox, started }))
            }
            Err(why) => {
                let evidence = sandbox.fail(&why);
                let last = [evidence.console, evidence.vmm].concat();
                let last = last.last().map(|line| format!("; it said: {line}"));
                Err(StartFailure(why + &last.unwrap_or_default()))
            }
        }
    }

    fn shared(&self) -> Vec<Process> {
        Vec::new()
    }
}

impl Cold {
    fn spec(&self, id: &str) -> Result<SandboxSpec, StartFailure> {
        let guest = &self.guest;
        let boot = Boot {
            memory_mib: guest.size.memory_mib,
            vcpus: guest.size.vcpus,
            kernel: guest.kernel.clone(),
            initrd: guest.initrd.clone(),
            image: guest.store.find(&guest.image)?,
            scratch: guest.scratch.clone(),
            keep: None,
            verbose: false,
        };
        Ok(SandboxSpec {
            id: id.into(),
            console: Console::Internal,
            origin: Origin::Boot(Box::new(boot)),
        })
    }
}

impl Sandbox for ColdSandbox {
    fn started(&self) -> &Started {
        &self.started
    }

    fn processes(&self) -> Vec<Process> {
        let (vmm, backend) = self.sandbox.pids();
        let janitor = self.sandbox.janitor_pid();
        [
            (vmm, Role::Vmm),
            (backend, Role::Backend),
            (janitor, Role::Helper),
        ]
        .map(|(pid, role)| Process { pid, role })
        .to_vec()
    }
}

/// Until the agent's word, then for the VMM's timeline, which is no part of the start.
fn await_ready(
    events: &Receiver<(Instant, Event)>,
    requested: Instant,
    sandbox: &sandbox::Sandbox,
) -> Result<Started, String> {
    let mut said: Option<(Instant, Ready)> = None;
    let mut vmm: Option<BTreeMap<String, u64>> = None;
    let mut deadline = Instant::now() + BOOT;
    while said.is_none() || vmm.is_none() {
        let left = deadline.saturating_duration_since(Instant::now());
        match events.recv_timeout(left) {
            Err(_) if said.is_some() => break,
            Err(_) => {
                return Err(format!(
                    "it was not ready within {} seconds",
                    BOOT.as_secs()
                ));
            }
            Ok((at, Event::Ready(ready))) => {
                said = Some((at, ready));
                deadline = Instant::now() + HINDSIGHT;
            }
            Ok((_, Event::Timeline(instants))) => vmm = Some(instants),
            Ok((_, Event::NotReady(why))) => return Err(why),
            Ok((_, Event::VmmEnded(end))) => {
                let exit = end.exit.map(|exit| exit.message.unwrap_or(exit.reason));
                return Err(exit.unwrap_or_else(|| format!("the VMM ended ({})", end.status)));
            }
            Ok((_, Event::BackendEnded(status))) => {
                return Err(format!("the block backend ended ({status})"));
            }
            Ok(_) => {}
        }
    }
    let Some((ready, word)) = said else {
        return Err("the agent said nothing".into());
    };
    let instants = sandbox.instants();
    let mut all = steps(requested, &[("block backend", instants.backend_listening)]);
    all.extend(cold_steps(
        ready.saturating_duration_since(instants.backend_listening),
        vmm.as_ref(),
        &word,
    ));
    Ok(Started {
        requested,
        ready,
        steps: all,
    })
}

/// What was between the backend and the agent's word: the VMM until it runs, the guest's kernel, init.
fn cold_steps(whole: Duration, vmm: Option<&BTreeMap<String, u64>>, word: &Ready) -> Vec<Step> {
    let running = vmm.and_then(|instants| instants.get("running"));
    let until_running = Duration::from_micros(running.copied().unwrap_or(0)).min(whole);
    let init = Duration::from_micros(word.ready_us.saturating_sub(word.init_us));
    let init = init.min(whole - until_running);
    [
        ("VMM until the guest runs", until_running),
        ("guest kernel until init", whole - until_running - init),
        ("init until the agent is ready", init),
    ]
    .map(|(name, took)| Step {
        name: name.into(),
        took,
    })
    .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_s_steps_are_all_of_its_start() {
        let requested = Instant::now();
        let at = |us| requested + Duration::from_micros(us);
        let instants = MemberInstants {
            requested,
            forked: at(400),
            running: at(3000),
            ready: at(7000),
            vmm_us: [("forked", 300), ("vm", 900), ("running", 2500)]
                .map(|(name, us)| (name.to_owned(), us))
                .into(),
            renewed: Duration::from_micros(1500),
        };
        let started = clone_started(&instants);
        let steps: Vec<_> = started
            .steps
            .iter()
            .map(|step| (step.name.as_str(), step.took.as_micros()))
            .collect();
        assert_eq!(
            steps,
            [
                ("node and zygote", 500),
                ("VMM: forked", 300),
                ("VMM: vm", 600),
                ("VMM: running", 1600),
                ("agent: until it is asked and has answered", 2500),
                ("agent: renewal", 1500),
            ]
        );
        let sum: Duration = started.steps.iter().map(|step| step.took).sum();
        assert_eq!(sum, started.took());
    }

    #[test]
    fn a_boot_s_steps_are_all_of_it_whatever_the_guest_says() {
        let whole = Duration::from_millis(100);
        for (running, init_us, ready_us) in [
            (20_000, 5, 10_005),
            (900_000, 0, 0),
            (0, 0, u64::MAX),
            (1, 9, 1),
        ] {
            let vmm = BTreeMap::from([("running".to_owned(), running)]);
            let word = Ready {
                version: 1,
                init_us,
                ready_us,
            };
            let steps = cold_steps(whole, Some(&vmm), &word);
            assert_eq!(steps.iter().map(|it| it.took).sum::<Duration>(), whole);
        }
        let steps = cold_steps(
            whole,
            None,
            &Ready {
                version: 1,
                init_us: 1000,
                ready_us: 3000,
            },
        );
        assert_eq!(steps[2].took, Duration::from_millis(2));
    }
}
