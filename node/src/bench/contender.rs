//! One system of a run: how to make it ready to start sandboxes, and what it has shown so far.

use std::fmt;

use super::report::SystemReport;
use super::system::{Kind, StartFailure, System};

type Make<'a> = Box<dyn Fn() -> Result<Box<dyn System>, StartFailure> + 'a>;

/// A system that is there only while it is measured.
pub(super) struct Contender<'a> {
    pub(super) report: SystemReport,
    make: Make<'a>,
    system: Option<Box<dyn System>>,
}

impl fmt::Debug for Contender<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Contender")
            .field("report", &self.report)
            .finish_non_exhaustive()
    }
}

impl<'a> Contender<'a> {
    pub(super) fn new(
        name: &str,
        kind: Kind,
        notes: Vec<String>,
        make: impl Fn() -> Result<Box<dyn System>, StartFailure> + 'a,
    ) -> Self {
        Self {
            report: SystemReport {
                name: name.into(),
                kind,
                notes,
                unusable: None,
                start: Vec::new(),
                density: None,
            },
            make: Box::new(make),
            system: None,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.report.name
    }

    /// Makes it; what is in the way is in its report.
    pub(super) fn open(&mut self) {
        match (self.make)() {
            Ok(system) => self.system = Some(system),
            Err(StartFailure(why)) => self.report.unusable = Some(why),
        }
    }

    /// Absent when it could not be made, or was closed.
    pub(super) fn system(&self) -> Option<&dyn System> {
        self.system.as_deref()
    }

    pub(super) fn close(&mut self) {
        self.system = None;
    }
}
