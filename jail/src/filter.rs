//! Which system calls a thread has, and with which arguments (seccomp(2)).
//!
//! A call that is not allowed kills the whole process with SIGSYS, before it does anything, and the kernel's
//! log says which it was (audit record 1326). There is no second mode: what kills in the field kills in
//! tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use thiserror::Error;

/// Why there is no filter.
#[derive(Debug, Error)]
pub enum FilterError {
    /// It makes no sense.
    #[error("cannot compile a system call filter")]
    Compile(#[source] seccompiler::BackendError),
    /// The kernel does not take it.
    #[error("cannot load a system call filter")]
    Load(#[source] seccompiler::Error),
}

/// What one argument must be; the first one is 0. Numbers are compared as the kernel takes them: 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// This number.
    Is(u8, u32),
    /// Any other number.
    IsNot(u8, u32),
    /// A number without any of these bits.
    Without(u8, u32),
    /// No address.
    Null(u8),
}

/// A call that does not kill.
#[derive(Clone, Debug)]
pub struct Allowed {
    number: i64,
    then: Then,
    /// One of these, each with all of its tests; if there are none, always.
    cases: Vec<Vec<Test>>,
}

/// What becomes of a call in one of the cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Happens,
    /// It fails as on a kernel that does not know it. In no other case it kills.
    Fails,
}

/// Allows a call, whatever its arguments.
#[must_use]
pub fn call(number: libc::c_long) -> Allowed {
    Allowed {
        number,
        then: Then::Happens,
        cases: Vec::new(),
    }
}

/// Allows a call only if all of these hold.
#[must_use]
pub fn only(number: libc::c_long, tests: &[Test]) -> Allowed {
    Allowed {
        cases: vec![tests.to_vec()],
        ..call(number)
    }
}

/// Allows a call if this argument is one of these numbers.
#[must_use]
pub fn one_of(number: libc::c_long, argument: u8, values: &[u32]) -> Allowed {
    let case = |&value| vec![Test::Is(argument, value)];
    Allowed {
        cases: values.iter().map(case).collect(),
        ..call(number)
    }
}

/// Has a call fail as if this kernel did not know it; for what libraries try and can do without.
#[must_use]
pub fn absent(number: libc::c_long) -> Allowed {
    Allowed {
        then: Then::Fails,
        ..call(number)
    }
}

/// Allows a call if this argument is one of these numbers, and has it fail otherwise.
#[must_use]
pub fn absent_unless(number: libc::c_long, argument: u8, values: &[u32]) -> Allowed {
    let tests = values.iter().map(|&value| Test::IsNot(argument, value));
    Allowed {
        cases: vec![tests.collect()],
        ..absent(number)
    }
}

/// Allows a thread to be started, and nothing else that is like it: no process, no namespace. The arguments
/// of clone3(2) are out of sight here, and the C library does without.
#[must_use]
pub fn start_of_a_thread() -> [Allowed; 2] {
    let flags = libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM
        | libc::CLONE_SETTLS
        | libc::CLONE_PARENT_SETTID
        | libc::CLONE_CHILD_CLEARTID;
    let flags = u32::try_from(flags).expect("flags are not negative");
    [
        absent(libc::SYS_clone3),
        only(libc::SYS_clone, &[Test::Is(0, flags)]),
    ]
}

/// A compiled filter, cheap to clone.
#[derive(Clone, Debug)]
pub struct Filter(Arc<[BpfProgram]>);

impl Filter {
    /// Compiles it. A call that is there twice has the cases of both.
    pub fn compile(allowed: impl IntoIterator<Item = Allowed>) -> Result<Self, FilterError> {
        let mut happens = Rules::default();
        let mut fails = Rules::default();
        for Allowed {
            number,
            then,
            cases,
        } in allowed
        {
            match then {
                Then::Happens => happens.add(number, &cases)?,
                Then::Fails => {
                    happens.add(number, &[])?;
                    fails.add(number, &cases)?;
                }
            }
        }
        let mut programs = Vec::new();
        if !fails.0.is_empty() {
            // Of the answers of several filters the stricter one counts.
            let enosys = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
            programs.push(fails.program(SeccompAction::Allow, enosys)?);
        }
        programs.push(happens.program(SeccompAction::KillProcess, SeccompAction::Allow)?);
        Ok(Self(programs.into()))
    }

    /// From now on this thread, and threads that it starts, have no other calls.
    pub fn load(&self) -> Result<(), FilterError> {
        for program in &*self.0 {
            seccompiler::apply_filter(program).map_err(FilterError::Load)?;
        }
        Ok(())
    }
}

/// The cases of each call; none where it does not depend on its arguments.
#[derive(Default)]
struct Rules(BTreeMap<i64, Vec<SeccompRule>>);

impl Rules {
    fn add(&mut self, number: i64, cases: &[Vec<Test>]) -> Result<(), FilterError> {
        let rule = |case: &Vec<Test>| {
            let conditions = case.iter().copied().map(condition);
            SeccompRule::new(conditions.collect::<Result<_, _>>()?)
        };
        let rules = cases.iter().map(rule).collect::<Result<Vec<_>, _>>();
        let rules = rules.map_err(FilterError::Compile)?;
        let there = self.0.get(&number).map(Vec::is_empty);
        if rules.is_empty() || there == Some(true) {
            self.0.insert(number, Vec::new());
        } else {
            self.0.entry(number).or_default().extend(rules);
        }
        Ok(())
    }

    fn program(
        self,
        otherwise: SeccompAction,
        action: SeccompAction,
    ) -> Result<BpfProgram, FilterError> {
        SeccompFilter::new(self.0, otherwise, action, TargetArch::x86_64)
            .and_then(BpfProgram::try_from)
            .map_err(FilterError::Compile)
    }
}

fn condition(test: Test) -> Result<SeccompCondition, seccompiler::BackendError> {
    use SeccompCmpArgLen::{Dword, Qword};
    match test {
        Test::Is(argument, value) => {
            SeccompCondition::new(argument, Dword, SeccompCmpOp::Eq, u64::from(value))
        }
        Test::IsNot(argument, value) => {
            SeccompCondition::new(argument, Dword, SeccompCmpOp::Ne, u64::from(value))
        }
        Test::Without(argument, bits) => {
            let masked = SeccompCmpOp::MaskedEq(u64::from(bits));
            SeccompCondition::new(argument, Dword, masked, 0)
        }
        Test::Null(argument) => SeccompCondition::new(argument, Qword, SeccompCmpOp::Eq, 0),
    }
}
