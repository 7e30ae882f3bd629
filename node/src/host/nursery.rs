//! A zygote for whoever needs one: started when it is asked for and none lives, noted on disk so that a later
//! daemon can wait for its end before it looks at what it has made.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use super::Inner;
use super::ends::News;
use super::record::{self, ProcessRecord};
use crate::sandbox::zygote::{Ends, Zygote, ZygoteError};
use crate::sandbox::{DEATH, process};

/// The file's name, in the directory of a nursery.
const FILE: &str = "zygote.json";

/// How long a zygote whose daemon has died may take to notice.
const LEAVE: Duration = Duration::from_secs(5);

/// The place of one zygote.
#[derive(Debug)]
pub(super) struct Nursery {
    /// What it clones, and what that is called; absent for the one that boots.
    template: Option<(PathBuf, String)>,
    note: PathBuf,
    place: Mutex<Option<Arc<Zygote>>>,
    /// Why there will never be one, if its template does not fit.
    unfit: OnceLock<String>,
    /// Set when its end is no news.
    over: Arc<AtomicBool>,
}

impl Nursery {
    pub(super) fn new(template: Option<(PathBuf, String)>, directory: &Path) -> Self {
        Self {
            template,
            note: directory.join(FILE),
            place: Mutex::default(),
            unfit: OnceLock::new(),
            over: Arc::default(),
        }
    }

    /// The living zygote, started if there is none.
    pub(super) fn zygote(&self, inner: &Arc<Inner>) -> Result<Arc<Zygote>, ZygoteError> {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(zygote) = place.as_ref().filter(|it| it.is_alive()) {
            return Ok(Arc::clone(zygote));
        }
        if self.over.load(Ordering::Acquire) {
            return Err(ZygoteError::Gone);
        }
        // The dead one is waited for before the next one loads its template.
        *place = None;
        let (inbox, over) = (inner.ends.inbox(), Arc::clone(&self.over));
        let ends: Ends = {
            let inbox = inner.ends.inbox();
            Arc::new(move |id, end| {
                inbox.tell(News::Told {
                    id: id.to_owned(),
                    end,
                });
            })
        };
        let template = self.template.as_ref().map(|(_, name)| name.clone());
        let gone = move || {
            if !over.load(Ordering::Acquire) {
                let template = template.unwrap_or_default();
                inbox.tell(News::ZygoteGone { template });
            }
        };
        let directory = self.template.as_ref().map(|(path, _)| path.as_path());
        if let Some(why) = self.unfit.get() {
            return Err(ZygoteError::TemplateUnfit(why.clone()));
        }
        let zygote = Zygote::start(directory, ends, gone).inspect_err(|error| {
            if let ZygoteError::TemplateUnfit(why) = error {
                self.unfit.get_or_init(|| why.clone());
            }
        })?;
        self.settle(inner, zygote.child().pid())?;
        let zygote = Arc::new(zygote);
        *place = Some(Arc::clone(&zygote));
        Ok(zygote)
    }

    /// Before its first request.
    fn settle(&self, inner: &Inner, pid: u32) -> Result<(), ZygoteError> {
        let started = process::start_time(pid).map_err(ZygoteError::Socket)?;
        let note = ProcessRecord { pid, started };
        record::write(&self.note, &note)
            .map_err(|error| ZygoteError::Socket(std::io::Error::other(error)))?;
        if let Err(error) = inner.slots.join_helpers(pid) {
            log::warn!("the zygote, pid {pid}, stays in the daemon's cgroup: {error}");
        }
        log::info!("zygote of {:?}: pid {pid}", self.template);
        Ok(())
    }

    /// Its process id, while it lives.
    pub(super) fn pid(&self) -> Option<u32> {
        let place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        let zygote = place.as_ref().filter(|it| it.is_alive())?;
        Some(zygote.child().pid())
    }

    /// Ends the zygote; its children live on, and there will be no other one.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Release);
        let zygote = self
            .place
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        drop(zygote);
        // It may be gone with its directory.
        let _ = fs::remove_file(&self.note);
    }
}

/// Waits until a zygote of an earlier daemon has ended, which it does by itself: nothing it was still asked
/// for is made after this.
pub(super) fn await_end(directory: &Path) {
    let path = directory.join(FILE);
    let note = fs::read(&path).ok();
    let note = note.and_then(|json| serde_json::from_slice::<ProcessRecord>(&json).ok());
    let pidfd = note.and_then(|it| process::find(it.pid, it.started));
    if let (Some(note), Some(pidfd)) = (note, pidfd) {
        let ended = |limit| process::ends_within(&pidfd, limit).unwrap_or(true);
        if !ended(LEAVE) {
            process::kill(&pidfd);
            if !ended(DEATH) {
                log::error!("the zygote, pid {}, survives SIGKILL", note.pid);
            }
        }
    }
    let _ = fs::remove_file(&path);
}
