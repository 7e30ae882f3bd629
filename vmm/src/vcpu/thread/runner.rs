//! The running side of a vCPU's thread: what it does with the commands that `thread` sends.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use rundlet_jail::filter::{Filter, FilterError};

use crate::kvm::clock::Moment;
use crate::kvm::{KvmError, Vm};
use crate::outcome::Outcome;
use crate::template::touched::Touched;
use crate::vcpu::exit_slot::ExitSlot;
use crate::vcpu::prefault;
use crate::vcpu::state::{StateError, VcpuState};
use crate::vcpu::{Step, Vcpu};

#[derive(Debug)]
pub(super) enum Command {
    /// For the first time.
    Begin,
    Pause,
    Resume,
    /// Have these pages mapped for the guest. There is no answer.
    Map(Arc<Touched>),
    /// The MSRs to save.
    Save(Arc<[u32]>),
    /// Read the clocks.
    Moment(Arc<Vm>),
    Finish,
}

pub(super) enum Answer {
    /// The thread has its filter, or cannot have it.
    Confined(Result<(), FilterError>),
    Paused,
    Resumed,
    Saved(Result<Box<VcpuState>, StateError>),
    Moment(Result<Moment, KvmError>),
    NotPaused,
}

/// The running side: owns the vCPU, lives on its thread.
pub(super) struct Runner {
    pub(super) vcpu: Vcpu,
    pub(super) commands: Receiver<Command>,
    pub(super) answers: Sender<Answer>,
    pub(super) exit: ExitSlot,
}

enum State {
    Running,
    Paused,
    Finished,
}

impl Runner {
    /// The thread. A panic in a device ends the sandbox like any other failure; the vCPU outlives it,
    /// because the kick byte of the handle lies in its page.
    pub(super) fn thread(mut self, filter: &Filter) -> Vcpu {
        self.answer(Answer::Confined(filter.load()));
        if catch_unwind(AssertUnwindSafe(|| self.run())).is_err() {
            let index = self.vcpu.index();
            self.exit.put(Outcome::Error(format!(
                "the thread of vCPU {index} panicked"
            )));
        }
        self.vcpu
    }

    fn run(&mut self) {
        let mut state = State::Paused;
        loop {
            state = match state {
                State::Running => self.running(),
                State::Paused => self.paused(),
                State::Finished => return,
            }
        }
    }

    fn running(&mut self) -> State {
        loop {
            match self.vcpu.step() {
                Step::Continue => {}
                Step::Interrupted => match self.commands.try_recv() {
                    Ok(Command::Pause) => {
                        self.answer(Answer::Paused);
                        return State::Paused;
                    }
                    Ok(Command::Finish) => return State::Finished,
                    Ok(Command::Resume) => self.answer(Answer::Resumed),
                    Ok(Command::Begin) => {}
                    Ok(Command::Map(touched)) => self.map(&touched),
                    Ok(Command::Save(_) | Command::Moment(_)) => self.answer(Answer::NotPaused),
                    Err(_) => {}
                },
                Step::End(outcome) => {
                    self.exit.put(outcome);
                    return State::Finished;
                }
            }
        }
    }

    fn paused(&mut self) -> State {
        loop {
            match self.commands.recv() {
                Ok(Command::Begin) => return State::Running,
                Ok(Command::Pause) => self.answer(Answer::Paused),
                Ok(Command::Map(touched)) => self.map(&touched),
                Ok(Command::Save(msrs)) => {
                    let state = VcpuState::save(self.vcpu.fd(), &msrs);
                    self.answer(Answer::Saved(state.map(Box::new)));
                }
                Ok(Command::Moment(vm)) => {
                    let moment = Moment::now(&vm, self.vcpu.fd());
                    self.answer(Answer::Moment(moment));
                }
                Ok(Command::Resume) => {
                    // Tells the guest's watchdogs that time has jumped; a guest without KVM's clock
                    // has none to tell, and then KVM says EINVAL.
                    let _ = self.vcpu.fd().kvmclock_ctrl();
                    self.answer(Answer::Resumed);
                    return State::Running;
                }
                Ok(Command::Finish) | Err(_) => return State::Finished,
            }
        }
    }

    /// What cannot be had so the guest gets as it goes.
    fn map(&self, touched: &Touched) {
        if let Err(error) = prefault::all(self.vcpu.fd(), touched) {
            log::debug!("pages that are touched are not at hand: {error}");
        }
    }

    /// The other side may have given up on us; then nobody is there to hear.
    fn answer(&self, answer: Answer) {
        let _ = self.answers.send(answer);
    }
}
