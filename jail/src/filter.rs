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
    /// A number without any of these bits.
    Without(u8, u32),
    /// No address.
    Null(u8),
}

/// A call that is allowed.
#[derive(Clone, Debug)]
pub struct Allowed {
    number: i64,
    /// One of these, each with all of its tests; if there are none, always.
    cases: Vec<Vec<Test>>,
}

/// Allows a call, whatever its arguments.
#[must_use]
pub fn call(number: libc::c_long) -> Allowed {
    Allowed {
        number,
        cases: Vec::new(),
    }
}

/// Allows a call only if all of these hold.
#[must_use]
pub fn only(number: libc::c_long, tests: &[Test]) -> Allowed {
    Allowed {
        number,
        cases: vec![tests.to_vec()],
    }
}

/// Allows a call if this argument is one of these numbers.
#[must_use]
pub fn one_of(number: libc::c_long, argument: u8, values: &[u32]) -> Allowed {
    let case = |&value| vec![Test::Is(argument, value)];
    Allowed {
        number,
        cases: values.iter().map(case).collect(),
    }
}

/// A compiled filter, cheap to clone.
#[derive(Clone, Debug)]
pub struct Filter(Arc<BpfProgram>);

impl Filter {
    /// Compiles it. A call that is there twice has the cases of both.
    pub fn compile(allowed: impl IntoIterator<Item = Allowed>) -> Result<Self, FilterError> {
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
        let mut always = Vec::new();
        for Allowed { number, cases } in allowed {
            if cases.is_empty() {
                always.push(number);
            }
            let rule = |case: &Vec<Test>| {
                let conditions = case
                    .iter()
                    .copied()
                    .map(condition)
                    .collect::<Result<_, _>>()?;
                SeccompRule::new(conditions)
            };
            let cases = cases.iter().map(rule).collect::<Result<Vec<_>, _>>();
            rules
                .entry(number)
                .or_default()
                .extend(cases.map_err(FilterError::Compile)?);
        }
        // Without a rule a call is allowed as it comes.
        for number in always {
            rules.insert(number, Vec::new());
        }
        let filter = SeccompFilter::new(
            rules,
            SeccompAction::KillProcess,
            SeccompAction::Allow,
            TargetArch::x86_64,
        );
        let program = filter.and_then(BpfProgram::try_from);
        Ok(Self(Arc::new(program.map_err(FilterError::Compile)?)))
    }

    /// From now on this thread, and threads that it starts, have no other calls.
    pub fn load(&self) -> Result<(), FilterError> {
        seccompiler::apply_filter(&self.0).map_err(FilterError::Load)
    }
}

fn condition(test: Test) -> Result<SeccompCondition, seccompiler::BackendError> {
    use SeccompCmpArgLen::{Dword, Qword};
    match test {
        Test::Is(argument, value) => {
            SeccompCondition::new(argument, Dword, SeccompCmpOp::Eq, u64::from(value))
        }
        Test::Without(argument, bits) => {
            let masked = SeccompCmpOp::MaskedEq(u64::from(bits));
            SeccompCondition::new(argument, Dword, masked, 0)
        }
        Test::Null(argument) => SeccompCondition::new(argument, Qword, SeccompCmpOp::Eq, 0),
    }
}
