//! A clone between the wish for it and its first instruction.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::super::fleet::Shared;
use super::super::vmm::{CloneSpec, Ends};
use super::super::words::{Silence, Words};
use super::super::zygote::{Handle, Role, Wanted, ZygoteError};
use super::super::{DEATH, MAX_SOCKET, StartError, printable};
use super::{Entry, Member, MemberError, MemberInstants, Wish};
use crate::agent::Agent;
use crate::claim;
use crate::error::PathError;

/// For a clone to run, once its process is there. Milliseconds, unless hundreds start at once.
const RUNNING: Duration = Duration::from_secs(60);

/// For a VMM that has ended to say so.
const HINDSIGHT: Duration = Duration::from_secs(1);

/// A clone on its way. Dropped before it is born, nothing is left of it.
pub(super) struct Nascent<'a> {
    id: String,
    shared: &'a Arc<Shared>,
    pub(super) entry: Arc<Entry>,
    born: bool,
}

impl<'a> Nascent<'a> {
    pub(super) fn enter(shared: &'a Arc<Shared>, id: &str) -> Result<Self, MemberError> {
        let usable = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if !(1..=64).contains(&id.len()) || !id.chars().all(usable) {
            return Err(MemberError::Id(id.into()));
        }
        let entry = Arc::new(Entry {
            directory: shared.run.path().join(id),
            process: OnceLock::new(),
            end: OnceLock::new(),
            told: AtomicBool::new(false),
        });
        if !shared.members.enter(id, &entry) {
            return Err(MemberError::Taken(id.into()));
        }
        let nascent = Self {
            id: id.into(),
            shared,
            entry,
            born: false,
        };
        let directory = nascent.entry.directory();
        fs::DirBuilder::new()
            .mode(0o700)
            .create(directory)
            .map_err(PathError::at("create directory", directory))?;
        let longest = directory.join("vsock.sock_4294967295");
        if longest.as_os_str().len() > MAX_SOCKET {
            return Err(StartError::SocketPath { path: longest }.into());
        }
        Ok(nascent)
    }

    pub(super) fn vsock(&self) -> PathBuf {
        self.entry.directory.join("vsock.sock")
    }

    /// Has the zygote make its process; once more with another zygote if the first one died over it.
    pub(super) fn fork(&self, wish: &Wish, stdout: &OwnedFd) -> Result<Handle, MemberError> {
        let shared = self.shared;
        let vsock = self.vsock();
        let console = wish
            .console
            .then(|| self.entry.directory.join("console.log"));
        let ends = Ends {
            root: &shared.root_socket,
            scratch: &shared.scratch_socket,
            vsock: &vsock,
            console: console.as_deref(),
            jail: None,
        };
        let spec = CloneSpec::new(&shared.cloned.binding, &ends)?;
        let wanted = Wanted::Clone(&spec);
        let mut fds = vec![
            (Role::Lifeline, shared.lifeline.as_fd()),
            (Role::Stdout, stdout.as_fd()),
            (Role::Stderr, shared.stderr.as_fd()),
        ];
        fds.extend(wish.cgroup.as_ref().map(|it| (Role::Cgroup, it.as_fd())));
        match shared.zygote()?.make(&self.id, wanted, &fds) {
            Err(ZygoteError::Gone) => {
                // It may have made the process and died before it said so. That one ends with the fleet,
                // and has lost its socket.
                let _ = fs::remove_file(&vsock);
                Ok(shared.zygote()?.make(&self.id, wanted, &fds)?)
            }
            other => Ok(other?),
        }
    }

    /// Reads the VMM's events until it runs.
    pub(super) fn await_running(
        &self,
        words: &mut Words,
    ) -> Result<BTreeMap<String, u64>, MemberError> {
        words.timeline(RUNNING).map_err(|silence| match silence {
            Silence::Exit(exit) if exit.is_template_unfit() => {
                MemberError::TemplateUnfit(exit.message.unwrap_or(exit.reason))
            }
            Silence::Exit(exit) => self.ended(&exit.message.unwrap_or(exit.reason)),
            Silence::Nothing => self.ended("it said nothing"),
            Silence::Late => MemberError::Late {
                id: self.id.clone(),
                limit: RUNNING,
            },
            Silence::Read(error) => MemberError::Pipe(error),
        })
    }

    /// Why it could not be renewed: if its VMM has ended, what that said of it.
    pub(super) fn not_renewed(&self, words: &mut Words, why: String) -> MemberError {
        match words.timeline(HINDSIGHT) {
            Err(Silence::Exit(exit)) => {
                let said = exit.message.unwrap_or(exit.reason);
                self.ended(&format!("{said} ({why})"))
            }
            Err(Silence::Nothing) => self.ended(&format!("it said nothing ({why})")),
            _ => MemberError::NotRenewed {
                id: self.id.clone(),
                why,
            },
        }
    }

    fn ended(&self, why: &str) -> MemberError {
        MemberError::Ended {
            id: self.id.clone(),
            why: printable(why.as_bytes()),
        }
    }

    pub(super) fn born(mut self, id: String, agent: Agent, instants: MemberInstants) -> Member {
        self.born = true;
        Member {
            id,
            shared: Arc::clone(self.shared),
            entry: Arc::clone(&self.entry),
            agent,
            instants,
        }
    }
}

impl Drop for Nascent<'_> {
    fn drop(&mut self) {
        if !self.born {
            bury(self.shared, &self.id, &self.entry);
        }
    }
}

/// Ends a clone and removes everything of it.
pub(super) fn bury(shared: &Shared, id: &str, entry: &Entry) {
    entry.kill();
    entry.wait(Instant::now() + DEATH);
    if let Err(error) = claim::remove(&entry.directory) {
        log::warn!("cannot remove {}: {error}", entry.directory.display());
    }
    shared.members.leave(id);
}
