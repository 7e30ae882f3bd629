//! What a zygote says, and who waits for it.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Deserialize;

use super::super::{VmmExit, process, rights};
use super::{CloneEnd, Ends, Handle, ZygoteError};

/// The longest answer.
const MAX_ANSWER: usize = 16 * 1024;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Ready {},
    Cloned {
        id: String,
        pid: u32,
    },
    Refused {
        id: Option<String>,
        message: String,
    },
    Ended {
        id: String,
        code: Option<i32>,
        signal: Option<i32>,
    },
}

/// Who asked for a clone, by its id.
type ById = HashMap<String, Sender<Result<Handle, ZygoteError>>>;

/// Those who wait for an answer; `None` once there will be none.
#[derive(Debug)]
pub(super) struct Waiting(Mutex<Option<ById>>);

impl Default for Waiting {
    fn default() -> Self {
        Self(Mutex::new(Some(ById::new())))
    }
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Option<ById>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the answer about `id` from now on.
    pub(super) fn enter(
        &self,
        id: &str,
    ) -> Result<Receiver<Result<Handle, ZygoteError>>, ZygoteError> {
        let (sender, answer) = mpsc::channel();
        match self.lock().as_mut() {
            None => Err(ZygoteError::Gone),
            Some(by_id) if by_id.contains_key(id) => Err(ZygoteError::Twice(id.into())),
            Some(by_id) => {
                by_id.insert(id.into(), sender);
                Ok(answer)
            }
        }
    }

    /// Waits no longer.
    pub(super) fn leave(&self, id: &str) {
        if let Some(by_id) = self.lock().as_mut() {
            by_id.remove(id);
        }
    }

    /// Whether there can be answers.
    pub(super) fn is_open(&self) -> bool {
        self.lock().is_some()
    }

    fn tell(&self, id: &str, answer: Result<Handle, ZygoteError>) {
        let sender = self.lock().as_mut().and_then(|by_id| by_id.remove(id));
        match (sender, answer) {
            // Who asked may have given up.
            (Some(sender), answer) => drop(sender.send(answer)),
            (None, Ok(handle)) => {
                log::warn!("zygote: clone {id} came too late and is ended");
                process::kill(&handle.pidfd);
            }
            (None, Err(error)) => log::warn!("{error}"),
        }
    }
}

/// What a start waits for.
pub(super) enum Begun {
    Ready,
    Exit(VmmExit),
    Ended,
}

/// Reads the answers until the zygote has gone.
pub(super) struct Reader {
    pub(super) socket: Arc<OwnedFd>,
    pub(super) waiting: Arc<Waiting>,
    pub(super) ends: Ends,
}

impl Reader {
    pub(super) fn run(&self, told: &Sender<Begun>) {
        let mut buffer = vec![0; MAX_ANSWER];
        loop {
            match rights::receive(&self.socket, &mut buffer) {
                Ok((0, _)) => break,
                Ok((count, fds)) => {
                    let json = buffer.get(..count).unwrap_or_default();
                    self.take(json, fds, told);
                }
                Err(error) => {
                    log::error!("reading the zygote's answers: {error}");
                    break;
                }
            }
        }
        // Whoever waits loses the sender, and so knows.
        *self.waiting.lock() = None;
    }

    fn take(&self, json: &[u8], mut fds: Vec<OwnedFd>, told: &Sender<Begun>) {
        match serde_json::from_slice(json) {
            // Nobody listens any more after the first.
            Ok(Answer::Ready {}) => drop(told.send(Begun::Ready)),
            Ok(Answer::Cloned { id, pid }) => {
                let handle = fds.pop().map(|pidfd| Handle { pid, pidfd });
                let message = "it sent no pidfd".to_owned();
                let answer = handle.ok_or_else(|| ZygoteError::Refused {
                    id: id.clone(),
                    message,
                });
                self.waiting.tell(&id, answer);
            }
            Ok(Answer::Refused { id, message }) => {
                let id = id.unwrap_or_default();
                let refused = ZygoteError::Refused {
                    id: id.clone(),
                    message,
                };
                self.waiting.tell(&id, Err(refused));
            }
            Ok(Answer::Ended { id, code, signal }) => {
                let code = code.map(CloneEnd::Code);
                let end = code.or_else(|| signal.map(CloneEnd::Signal));
                (self.ends)(&id, end.unwrap_or(CloneEnd::Unknown));
            }
            Err(error) => log::warn!("the zygote's answer is none: {error}"),
        }
    }
}
