//! `rundlet doctor`: can sandboxes run here, and if not, what to do. One line of advice per trouble.

mod host;
pub mod kvm;
mod kvm_probe;
mod programs;

use std::fmt::Write;

use serde::Serialize;

pub use kvm::Kvm;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Ok,
    /// Sandboxes run, but less well than they could.
    Warn,
    /// Sandboxes cannot run.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            status: Status::Ok,
            found: found.into(),
            advice: None,
        }
    }

    fn warn(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            status: Status::Warn,
            advice: Some(advice.into()),
            ..Self::ok(name, found)
        }
    }

    fn fail(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            status: Status::Fail,
            ..Self::warn(name, found, advice)
        }
    }
}

/// Everything that was looked at.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether sandboxes can run.
    pub usable: bool,
    pub kvm: Kvm,
    /// What one round of the measured guest loop took; absent when there was none.
    pub kvm_loop_ns: Option<f64>,
    pub checks: Vec<Check>,
}

/// Looks at this machine. Takes well under a second, 50 ms of it in the guest loop.
#[must_use]
pub fn examine() -> Report {
    let (kvm, kvm_loop_ns, mut checks) = kvm::examine();
    checks.extend(host::examine());
    checks.extend(programs::examine());
    Report {
        usable: checks.iter().all(|check| check.status != Status::Fail),
        kvm,
        kvm_loop_ns,
        checks,
    }
}

impl Report {
    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for check in &self.checks {
            let status = match check.status {
                Status::Ok => "ok  ",
                Status::Warn => "warn",
                Status::Fail => "FAIL",
            };
            // Writing to a String does not fail.
            let _ = writeln!(text, "{status}  {:<14} {}", check.name, check.found);
            if let Some(advice) = &check.advice {
                let _ = writeln!(text, "      {:<14} -> {advice}", "");
            }
        }
        text.push_str(if self.usable {
            "sandboxes can run here\n"
        } else {
            "sandboxes cannot run here\n"
        });
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_text_for_people_and_json_for_programs() {
        let report = Report {
            usable: false,
            kvm: Kvm::Absent,
            kvm_loop_ns: None,
            checks: vec![
                Check::ok("tool", "1.5"),
                Check::fail("kvm", "no /dev/kvm", "load the module"),
            ],
        };
        assert_eq!(
            report.text(),
            "ok    tool           1.5\n\
             FAIL  kvm            no /dev/kvm\n                     -> load the module\n\
             sandboxes cannot run here\n"
        );
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["kvm"], "absent");
        assert_eq!(json["checks"][1]["status"], "fail");
        assert!(json["checks"][0].get("advice").is_none());
    }

    #[test]
    fn every_trouble_here_comes_with_advice() {
        let report = examine();
        assert!(report.checks.len() > 10);
        for check in &report.checks {
            assert_eq!(
                check.advice.is_some(),
                check.status != Status::Ok,
                "{check:?}"
            );
        }
        let failed = report
            .checks
            .iter()
            .any(|check| check.status == Status::Fail);
        assert_eq!(report.usable, !failed);
    }
}
