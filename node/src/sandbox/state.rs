//! States of a sandbox and the ways between them.

/// Where a sandbox is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Processes started, guest not heard of yet.
    Creating,
    /// The agent answers; no command yet.
    Ready,
    /// A command was begun.
    Running,
    /// Paused for good and written down as a template.
    Captured,
    /// Something ended that should not have.
    Failed,
    /// Being taken down.
    Stopping,
    /// Nothing of it is left.
    Stopped,
}

impl State {
    /// Whether `next` may follow.
    #[must_use]
    pub fn may_become(self, next: State) -> bool {
        use State::{Captured, Creating, Failed, Ready, Running, Stopped, Stopping};
        matches!(
            (self, next),
            (Creating, Ready)
                | (Ready, Running)
                | (Ready | Running, Captured)
                | (Creating | Ready | Running | Captured, Failed)
                | (Creating | Ready | Running | Captured | Failed, Stopping)
                | (Stopping, Stopped)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::State::{self, *};

    #[test]
    fn there_is_no_way_back_and_one_way_out() {
        let all = [
            Creating, Ready, Running, Captured, Failed, Stopping, Stopped,
        ];
        let after = |state: State| all.into_iter().filter(move |next| state.may_become(*next));
        assert_eq!(after(Stopped).count(), 0);
        assert_eq!(after(Stopping).collect::<Vec<_>>(), [Stopped]);
        assert_eq!(after(Failed).collect::<Vec<_>>(), [Stopping]);
        assert_eq!(after(Captured).collect::<Vec<_>>(), [Failed, Stopping]);
        for state in all {
            assert!(!state.may_become(Creating));
            assert!(!state.may_become(state));
        }
    }
}
