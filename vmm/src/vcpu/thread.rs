//! The thread of a vCPU: Running, Paused or Finished, each a method that returns the next.
//!
//! The main thread sends a command through a channel and then *kicks*: it sets `immediate_exit` in the
//! vCPU's shared page, so that the next KVM_RUN returns at once, and sends a signal, so that a running
//! one does. The vCPU clears the byte when it comes out and only then looks into the channel, so a
//! command is never missed; at worst a kick is seen twice, which costs one more look. What the thread itself does is
//! in `runner`.

mod runner;

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Once};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;
use std::{fmt, io};

use rundlet_jail::filter::{Filter, FilterError};
use thiserror::Error;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use self::runner::{Answer, Command, Runner};
use super::Vcpu;
use super::exit_slot::ExitSlot;
use super::state::{StateError, VcpuState};
use crate::kvm::clock::Moment;
use crate::kvm::{KvmError, Vm};
use crate::template::touched::Touched;

/// How long a vCPU may take to come out of the guest. It is in user space of ours at worst while a
/// backend answers, and that is bounded below this.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the vCPUs did not do as told.
#[derive(Debug, Error)]
pub enum ThreadError {
    /// No thread.
    #[error("cannot start the thread of vCPU {index}")]
    Spawn {
        index: u8,
        #[source]
        source: io::Error,
    },
    /// Not in time.
    #[error("vCPU {index} did not answer within {} s", PATIENCE.as_secs())]
    Silent { index: u8 },
    /// It has ended.
    #[error("vCPU {index} has ended")]
    Ended { index: u8 },
    /// State can only be had while paused.
    #[error("vCPU {index} is running; pause first")]
    NotPaused { index: u8 },
    /// It must not run without its filter.
    #[error("vCPU {index}")]
    Filter {
        index: u8,
        #[source]
        source: FilterError,
    },
    /// KVM did not give the time.
    #[error(transparent)]
    Clock(#[from] KvmError),
    /// KVM did not give the state.
    #[error("cannot save vCPU {index}")]
    Save {
        index: u8,
        #[source]
        source: StateError,
    },
}

/// `immediate_exit` of a vCPU's shared page.
struct KickByte(NonNull<AtomicU8>);

// SAFETY: the byte is only accessed atomically here; KVM reads it once per entry, and the vCPU's own
// thread writes it with KVM_RUN out of the way. See `Handle` for why it stays mapped.
unsafe impl Send for KickByte {}

/// The controlling side of one vCPU thread.
struct Handle {
    index: u8,
    commands: Sender<Command>,
    answers: Receiver<Answer>,
    /// The `Vcpu`, and so the page of `kick`, lives on the thread or in this handle's result until
    /// [`Handle`] is gone: nobody takes the result out.
    thread: JoinHandle<Vcpu>,
    kick: KickByte,
}

impl Handle {
    fn start(mut runner: Runner, ends: Ends, filter: Filter) -> Result<Self, ThreadError> {
        let index = runner.vcpu.index();
        let kick = KickByte(runner.vcpu.immediate_exit());
        let thread = Builder::new()
            .name(format!("vcpu{index}"))
            .spawn(move || runner.thread(&filter))
            .map_err(|source| ThreadError::Spawn { index, source })?;
        Ok(Self {
            index,
            commands: ends.commands,
            answers: ends.answers,
            thread,
            kick,
        })
    }

    fn send(&self, command: Command) -> Result<(), ThreadError> {
        // An answer that came too late for the last question is none to this one.
        while self.answers.try_recv().is_ok() {}
        self.commands
            .send(command)
            .map_err(|_| ThreadError::Ended { index: self.index })?;
        // SAFETY: the page is mapped while `thread` has not been taken apart, see the field's comment.
        unsafe { self.kick.0.as_ref() }.store(1, Ordering::SeqCst);
        if let Err(error) = self.thread.kill(SIGRTMIN()) {
            // Only a thread that is gone cannot be signalled, and it hears the channel close.
            log::debug!("kicking vCPU {}: {error}", self.index);
        }
        Ok(())
    }

    fn answer(&self) -> Result<Answer, ThreadError> {
        self.answers
            .recv_timeout(PATIENCE)
            .map_err(|error| match error {
                RecvTimeoutError::Timeout => ThreadError::Silent { index: self.index },
                RecvTimeoutError::Disconnected => ThreadError::Ended { index: self.index },
            })
    }
}

/// The far ends of a runner's channels.
struct Ends {
    commands: Sender<Command>,
    answers: Receiver<Answer>,
}

/// All vCPUs of a sandbox.
pub struct Vcpus {
    handles: Vec<Handle>,
    paused: bool,
}

impl fmt::Debug for Vcpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vcpus")
            .field("count", &self.handles.len())
            .field("paused", &self.paused)
            .finish()
    }
}

impl Vcpus {
    /// Starts a thread with this filter for every vCPU. The guest waits for [`Vcpus::begin`].
    pub fn start(vcpus: Vec<Vcpu>, exit: &ExitSlot, filter: &Filter) -> Result<Self, ThreadError> {
        install_kick_handler();
        let mut handles = Vec::with_capacity(vcpus.len());
        for vcpu in vcpus {
            let (commands, command_end) = channel();
            let (answer_end, answers) = channel();
            let runner = Runner {
                vcpu,
                commands: command_end,
                answers: answer_end,
                exit: exit.clone(),
            };
            let ends = Ends { commands, answers };
            handles.push(Handle::start(runner, ends, filter.clone())?);
        }
        Ok(Self {
            handles,
            paused: false,
        })
    }

    /// Lets the guest run for the first time, once every thread has its filter.
    pub fn begin(&self) -> Result<(), ThreadError> {
        for handle in &self.handles {
            let index = handle.index;
            match handle.answer()? {
                Answer::Confined(confined) => {
                    confined.map_err(|source| ThreadError::Filter { index, source })?;
                }
                _ => return Err(ThreadError::Silent { index }),
            }
        }
        for handle in &self.handles {
            let sent = handle.commands.send(Command::Begin);
            sent.map_err(|_| ThreadError::Ended {
                index: handle.index,
            })?;
        }
        Ok(())
    }

    /// True between [`Vcpus::pause`] and [`Vcpus::resume`].
    #[must_use]
    pub fn paused(&self) -> bool {
        self.paused
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.handles.len()
    }

    /// Stops all vCPUs between two instructions; returns when every one stands still.
    pub fn pause(&mut self) -> Result<(), ThreadError> {
        for handle in &self.handles {
            handle.send(Command::Pause)?;
        }
        for handle in &self.handles {
            handle.answer()?;
        }
        self.paused = true;
        Ok(())
    }

    /// Lets them run on.
    pub fn resume(&mut self) -> Result<(), ThreadError> {
        for handle in &self.handles {
            handle.send(Command::Resume)?;
        }
        for handle in &self.handles {
            handle.answer()?;
        }
        self.paused = false;
        Ok(())
    }

    /// Has these pages mapped for the guest before it goes on. They are a hint: nobody waits for it, nor hears of a failure.
    pub fn map(&self, touched: &Arc<Touched>) {
        let sent = self
            .handles
            .first()
            .map(|boot_cpu| boot_cpu.send(Command::Map(Arc::clone(touched))));
        if let Some(Err(error)) = sent {
            log::debug!("pages that are touched are not at hand: {error}");
        }
    }

    /// The state of every vCPU, in order; they must be paused. `msrs` is what KVM lists as state.
    pub fn save(&self, msrs: Vec<u32>) -> Result<Vec<VcpuState>, ThreadError> {
        let msrs: Arc<[u32]> = msrs.into();
        let mut states = Vec::with_capacity(self.handles.len());
        for handle in &self.handles {
            let index = handle.index;
            handle.send(Command::Save(Arc::clone(&msrs)))?;
            match handle.answer()? {
                Answer::Saved(Ok(state)) => states.push(*state),
                Answer::Saved(Err(source)) => return Err(ThreadError::Save { index, source }),
                _ => return Err(ThreadError::NotPaused { index }),
            }
        }
        Ok(states)
    }

    /// What the clocks of `vm`, whose vCPUs these are, show now; they must be paused.
    pub fn moment(&self, vm: &Arc<Vm>) -> Result<Moment, ThreadError> {
        let boot_cpu = self.handles.first();
        let boot_cpu = boot_cpu.ok_or(ThreadError::Ended { index: 0 })?;
        boot_cpu.send(Command::Moment(Arc::clone(vm)))?;
        match boot_cpu.answer()? {
            Answer::Moment(moment) => Ok(moment?),
            _ => Err(ThreadError::NotPaused { index: 0 }),
        }
    }
}

impl Drop for Vcpus {
    /// Ends the threads, so that memory and devices can go: a vCPU of a dropped `Vcpus` runs no more.
    fn drop(&mut self) {
        for handle in &self.handles {
            // An error says that it has ended by itself.
            let _ = handle.send(Command::Finish);
        }
        for handle in self.handles.drain(..) {
            if handle.thread.join().is_err() {
                log::error!("the thread of vCPU {} panicked", handle.index);
            }
        }
    }
}

/// The kick signal does nothing but interrupt.
extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

fn install_kick_handler() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if let Err(error) = register_signal_handler(SIGRTMIN(), on_kick) {
            log::error!("cannot take the kick signal: {error}");
        }
    });
}

#[cfg(test)]
mod tests;
