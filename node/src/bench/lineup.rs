//! Who is measured, and on which guest.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::sync::Arc;

use super::BenchError;
use super::contender::Contender;
use super::firecracker::{Firecracker, FirecrackerCold, FirecrackerRestore};
use super::guest::GuestSetup;
use super::ours::{Clones, Cold};
use super::qemu::Qemu;
use super::report::{Guest, Input, SystemReport};
use super::system::{Kind, StartFailure, System};
use crate::digest;
use crate::fleet;
use crate::places;
use crate::run::watch::Wire;
use crate::run::{Cause, Machine, Place};
use crate::sandbox::{FleetEvent, FleetSink};
use crate::template::{TemplateName, Templates};
use crate::tools;

/// Ours, at least one of the two.
#[derive(Debug)]
pub struct Sandboxes {
    /// Clones of this template; all systems have its guest then.
    pub template: Option<TemplateName>,
    /// Cold boots.
    pub cold: Option<Machine>,
}

/// A system that is not ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub name: PeerName,
    /// Its program, where it is not the one in `PATH`.
    pub program: Option<PathBuf>,
}

/// The ones that are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerName {
    Qemu,
    /// Both of the next two.
    Firecracker,
    FirecrackerCold,
    FirecrackerRestore,
}

const NAMES: [(&str, PeerName); 4] = [
    ("qemu", PeerName::Qemu),
    ("firecracker", PeerName::Firecracker),
    ("firecracker-cold", PeerName::FirecrackerCold),
    ("firecracker-restore", PeerName::FirecrackerRestore),
];

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, program) = match text.split_once('=') {
            Some((_, "")) => return Err(format!("--peer {text} has no path after =")),
            Some((name, path)) => (name, Some(PathBuf::from(path))),
            None => (text, None),
        };
        let known = NAMES.iter().find(|(it, _)| *it == name);
        let &(_, name) = known.ok_or_else(|| {
            let all = NAMES.map(|(name, _)| name).join(", ");
            format!("--peer {name:?} is not known; {all} are, each with or without =PATH")
        })?;
        Ok(Self { name, program })
    }
}

impl Peer {
    fn program_name(&self) -> &'static str {
        match self.name {
            PeerName::Qemu => "qemu-system-x86_64",
            _ => "firecracker",
        }
    }

    /// Absolute, as it is started in another directory.
    fn find(&self) -> Result<PathBuf, StartFailure> {
        let name = self.program_name();
        match &self.program {
            Some(path) if tools::is_executable(path) => Ok(path.canonicalize()?),
            Some(path) => Err(StartFailure(format!("{} is no program", path.display()))),
            None => tools::find(name).ok_or_else(|| {
                StartFailure(format!("{name} is not in PATH; say where it is with =PATH"))
            }),
        }
    }
}

/// Everybody, with their guest.
pub(super) struct Lineup<'a> {
    place: &'a Place,
    guest: Arc<GuestSetup>,
    template: Option<TemplateName>,
    warm: bool,
    cold: bool,
    peers: &'a [Peer],
}

impl<'a> Lineup<'a> {
    pub(super) fn find(
        place: &'a Place,
        sandboxes: &Sandboxes,
        peers: &'a [Peer],
    ) -> Result<Self, BenchError> {
        let store = &place.store;
        let mut warm = false;
        let machine = match (&sandboxes.template, &sandboxes.cold) {
            (None, None) => return Err(BenchError::Nobody),
            (None, Some(machine)) => machine.clone(),
            (Some(name), cold) => {
                let template = Templates::of(store).find(name).map_err(Cause::Template)?;
                let recipe = template.record.recipe.clone();
                if let Some(cold) = cold {
                    let image = store.find(&cold.image).map_err(Cause::Store)?;
                    if image.digest != template.image.digest {
                        return Err(BenchError::OtherImage);
                    }
                }
                warm = recipe.warm_up.is_some();
                Machine {
                    image: recipe.image,
                    memory_mib: recipe.memory_mib,
                    vcpus: recipe.vcpus,
                    scratch_mib: recipe.scratch_mib,
                    kernel: recipe.kernel,
                    initrd: recipe.initrd,
                }
            }
        };
        crate::sandbox::check_size(machine.memory_mib, machine.vcpus).map_err(Cause::Spec)?;
        Ok(Self {
            place,
            guest: Arc::new(GuestSetup::of(store, &machine)?),
            template: sandboxes.template.clone(),
            warm,
            cold: sandboxes.cold.is_some(),
            peers,
        })
    }

    pub(super) fn guest(&self) -> Guest {
        self.guest.size
    }

    pub(super) fn contenders(&'a self) -> Result<Vec<Contender<'a>>, BenchError> {
        let mut all = Vec::new();
        if let Some(name) = &self.template {
            let notes = vec![
                format!(
                    "clones of template {name}; a start is over when the agent has renewed entropy, ids and clock"
                ),
                "one block backend and one zygote for all".into(),
            ];
            all.push(Contender::new("rundlet", Kind::Restore, notes, || {
                self.clones(name)
            }));
        }
        if self.cold {
            let notes =
                vec!["cold boots, each with a block backend and a janitor of its own".into()];
            all.push(Contender::new("rundlet-cold", Kind::Cold, notes, || {
                Ok(Box::new(Cold {
                    guest: Arc::clone(&self.guest),
                    runtime: self.place.runtime.clone(),
                }))
            }));
        }
        for peer in self.peers {
            all.extend(self.peer(peer));
        }
        Ok(all)
    }

    fn clones(&self, name: &TemplateName) -> Result<Box<dyn System>, StartFailure> {
        let events: FleetSink = Arc::new(|event| match event {
            FleetEvent::Ended { id, end } => log::warn!("clone {id} has ended: {end:?}"),
            FleetEvent::ZygoteGone => log::warn!("the zygote has died"),
            FleetEvent::BackendEnded(status) => log::warn!("the block backend ended: {status}"),
        });
        let wire = Wire::open()?;
        let fleet = fleet::start(self.place, &wire, name, &events)?;
        Ok(Box::new(Clones { fleet }))
    }

    fn peer(&'a self, peer: &'a Peer) -> Vec<Contender<'a>> {
        let firecracker = move || Firecracker::new(peer.find()?, &self.guest);
        let cold = || {
            let notes = vec!["disks are virtio-blk on files, the writable one a copy; no API, from a configuration file".into()];
            Contender::new("firecracker-cold", Kind::Cold, notes, move || {
                Ok(Box::new(FirecrackerCold(firecracker()?)))
            })
        };
        let restore = || {
            let mut notes = vec![
                "restores of one snapshot through its API, memory mapped from the file; disks as files, the writable one a copy".into(),
                "cannot make restored guests differ: they share entropy, ids and clock. A start is over when the agent answers a greeting".into(),
            ];
            if self.warm {
                notes.push("its guest has not run the template's warm-up".into());
            }
            Contender::new("firecracker", Kind::Restore, notes, move || {
                Ok(Box::new(FirecrackerRestore::new(firecracker()?)?))
            })
        };
        match peer.name {
            PeerName::FirecrackerCold => vec![cold()],
            PeerName::FirecrackerRestore => vec![restore()],
            PeerName::Firecracker => vec![restore(), cold()],
            PeerName::Qemu => {
                let notes = vec![
                    "microvm machine; disks are virtio-blk on files, the writable one a copy; agent over vhost-vsock".into(),
                    "cold boots only: it is not measured restoring".into(),
                ];
                vec![Contender::new("qemu", Kind::Cold, notes, move || {
                    Ok(Box::new(Qemu::new(peer.find()?, &self.guest)?))
                })]
            }
        }
    }

    /// Digests and versions of what took part.
    pub(super) fn inputs(&self, systems: &[SystemReport]) -> Vec<Input> {
        let usable = |name: &str| {
            let mut wanted = systems.iter().filter(|it| it.unusable.is_none());
            wanted.any(|it| it.name.starts_with(name))
        };
        let own = |name: &str| places::program(name).ok();
        let mut files = vec![("rundlet".to_owned(), std::env::current_exe().ok(), false)];
        if usable("rundlet") {
            files.push(("rundlet-vmm".into(), own("rundlet-vmm"), false));
            files.push(("vhost-blk-ro".into(), own("vhost-blk-ro"), false));
        }
        files.push(("kernel".into(), Some(self.guest.kernel.clone()), false));
        files.push(("initrd".into(), Some(self.guest.initrd.clone()), false));
        for peer in self.peers {
            let name = peer.program_name();
            if usable(name.trim_end_matches("-system-x86_64"))
                && !files.iter().any(|(it, ..)| it == name)
            {
                files.push((name.into(), peer.find().ok(), true));
            }
        }
        let input = |(name, path, says): (String, Option<PathBuf>, bool)| {
            let path = path?;
            Some(Input {
                digest: digest::of_file(&self.place.store, &path).ok()?,
                version: if says {
                    version(&path)
                } else {
                    (name == "rundlet").then(|| env!("CARGO_PKG_VERSION").to_owned())
                },
                name,
            })
        };
        let mut inputs: Vec<Input> = files.into_iter().filter_map(input).collect();
        inputs.push(Input {
            name: format!("image {}", self.guest.image),
            digest: self.guest.digest.clone(),
            version: None,
        });
        inputs
    }
}

/// The first line of what it says to `--version`.
fn version(program: &Path) -> Option<String> {
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let text = crate::sandbox::printable(output.stdout.split(|&byte| byte == b'\n').next()?);
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_named_with_or_without_a_path() {
        let qemu: Peer = "qemu".parse().unwrap();
        assert_eq!((qemu.name, qemu.program), (PeerName::Qemu, None));
        let fc: Peer = "firecracker=/opt/a=b/fc".parse().unwrap();
        assert_eq!(fc.program, Some("/opt/a=b/fc".into()));
        for (text, words) in [
            ("xen", "\"xen\" is not known; qemu, firecracker,"),
            ("qemu=", "no path"),
            ("", "\"\" is not known"),
        ] {
            let error = text.parse::<Peer>().unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn a_peer_that_is_not_there_says_where_it_was_looked_for() {
        let peer: Peer = "firecracker=/nonexistent/fc".parse().unwrap();
        let StartFailure(why) = peer.find().unwrap_err();
        assert_eq!(why, "/nonexistent/fc is no program");
        let shell = Peer {
            name: PeerName::Qemu,
            program: Some("/bin/sh".into()),
        };
        assert!(shell.find().unwrap().is_absolute());
    }
}
