//! The ways between the phases of a sandbox. There are no others.
//!
//! ```text
//! Creating ──ready──▶ Ready ──first command──▶ Running
//!    │                  │                         │
//!    ├──────────────────┴─────────────────────────┤ asked to end
//!    │                                            ▼
//!    │ not asked                               Stopping ──▶ Stopped
//!    └───────────▶ Failed ◀── (from Ready, Running, too)
//! ```

use super::model::Phase;

impl Phase {
    /// Whether `next` may follow.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        use Phase::{Creating, Failed, Ready, Running, Stopped, Stopping};
        matches!(
            (self, next),
            (Creating, Ready)
                | (Ready, Running)
                | (Creating | Ready | Running, Stopping | Failed)
                | (Stopping, Stopped)
        )
    }

    /// Whether nothing is left of it but its record.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Stopped | Self::Failed)
    }

    /// What it is called in the API and in errors.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Ready => "ready",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }

    /// How it has ended once it ends in this phase: as it was asked to, or not.
    #[must_use]
    pub(super) fn end(self) -> Self {
        if self == Self::Stopping {
            Self::Stopped
        } else {
            Self::Failed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Phase::{self, *};

    const ALL: [Phase; 6] = [Creating, Ready, Running, Stopping, Stopped, Failed];

    #[test]
    fn there_is_no_way_back_and_always_one_out() {
        for phase in ALL {
            let after: Vec<Phase> = ALL.into_iter().filter(|it| phase.may_become(*it)).collect();
            assert_eq!(after.is_empty(), phase.is_final(), "{phase:?}");
            assert!(
                after.iter().all(|next| *next > phase),
                "{phase:?} {after:?}"
            );
            if !phase.is_final() {
                assert!(phase.may_become(phase.end()), "{phase:?}");
            }
        }
        assert!(!Stopping.may_become(Failed));
        assert!(!Ready.may_become(Stopped));
    }

    #[test]
    fn names_are_those_of_the_api() {
        for phase in ALL {
            let json = serde_json::to_string(&phase).unwrap();
            assert_eq!(json, format!("\"{}\"", phase.name()));
        }
    }
}
