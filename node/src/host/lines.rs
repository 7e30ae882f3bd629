//! The lines there are, by what they are made of: one for each image or template in use.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::Duration;

use super::Inner;
use super::ends::News;
use super::line::{Line, LineError, Seat};
use super::nursery::Nursery;
use super::plan::Plan;
use crate::claim;
use crate::error::PathError;

/// How long a line stays that nobody needs.
const IDLE: Duration = Duration::from_secs(60);

/// A line's place, locked while the line is being started: others wait for the same one.
type Cell = Arc<Mutex<Option<Arc<Line>>>>;

/// All lines.
#[derive(Debug)]
pub(super) struct Lines {
    directory: PathBuf,
    cells: Mutex<HashMap<String, Cell>>,
    /// The zygote of every machine that boots.
    pub(super) boots: Nursery,
}

impl Lines {
    /// `base` is the host's directory.
    pub(super) fn new(base: &Path) -> Self {
        Self {
            directory: base.join("lines"),
            cells: Mutex::default(),
            boots: Nursery::new(None, base),
        }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    fn cells(&self) -> MutexGuard<'_, HashMap<String, Cell>> {
        self.cells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cell(&self, key: &str) -> Cell {
        Arc::clone(self.cells().entry(key.to_owned()).or_default())
    }

    /// A seat at the line of a plan, which is started if there is none.
    pub(super) fn seat(&self, inner: &Arc<Inner>, plan: Plan) -> Result<Seat, LineError> {
        let key = plan.key();
        loop {
            let cell = self.cell(&key);
            let mut place = cell.lock().unwrap_or_else(PoisonError::into_inner);
            // It may have been taken out of the map before it was locked.
            if !Arc::ptr_eq(&cell, &self.cell(&key)) {
                continue;
            }
            if let Some(line) = place.as_ref().filter(|line| !line.is_over()) {
                return Ok(Seat::take(line));
            }
            let random = claim::random_hex().map_err(LineError::Process)?;
            let name = format!("{key}-{}", random.get(..6).unwrap_or(&random));
            let line = Line::start(inner, plan, &name)?;
            *place = Some(Arc::clone(&line));
            inner.ends.inbox().tell(News::Line(Arc::clone(&line)));
            return Ok(Seat::take(&line));
        }
    }

    /// Takes in one that was found.
    pub(super) fn adopt(&self, line: &Arc<Line>) {
        let cell = self.cell(&line.key);
        let mut place = cell.lock().unwrap_or_else(PoisonError::into_inner);
        *place = Some(Arc::clone(line));
    }

    /// All that are not in the making.
    pub(super) fn all(&self) -> Vec<Arc<Line>> {
        let cells: Vec<Cell> = self.cells().values().cloned().collect();
        cells.iter().filter_map(peek).collect()
    }

    /// Takes out a line whose backend has ended.
    pub(super) fn lost(&self, line: &Arc<Line>) {
        line.set_over();
        line.nursery.end();
        let mut cells = self.cells();
        let same = |cell: &Cell| peek(cell).is_some_and(|it| Arc::ptr_eq(&it, line));
        if cells.get(&line.key).is_some_and(same) {
            cells.remove(&line.key);
        }
    }

    /// Takes out those that nobody has needed for so long.
    fn take_idle(&self, limit: Duration) -> Vec<Arc<Line>> {
        let mut idle = Vec::new();
        self.cells().retain(|_, cell| {
            // Locked while the line's seats are counted: nobody takes one meanwhile.
            let place = match cell.try_lock() {
                Ok(place) => place,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return true,
            };
            let Some(line) = place.as_ref() else {
                // Empty, and in nobody's hands but ours.
                return Arc::strong_count(cell) > 1;
            };
            let keep = line.idle().is_none_or(|idle| idle < limit);
            if !keep {
                line.set_over();
                idle.push(Arc::clone(line));
            }
            keep
        });
        idle
    }

    /// Closes, on a thread, those that nobody has needed for a while.
    pub(super) fn close_idle(&self, inner: &Arc<Inner>) {
        for line in self.take_idle(IDLE) {
            let (closing, inner) = (Arc::clone(&line), Arc::clone(inner));
            let close = move || closing.close(&inner);
            if let Err(error) = thread::Builder::new().name("line".into()).spawn(close) {
                log::warn!("line {} is closed later: {error}", line.name);
            }
        }
    }

    /// Closes all that nobody needs, at once: images and templates that were locked for them can be removed.
    pub(super) fn close_unused(&self, inner: &Inner) {
        for line in self.take_idle(Duration::ZERO) {
            line.close(inner);
        }
    }

    /// The daemon ends: zygotes go, backends stay.
    pub(super) fn leave(&self) {
        for line in self.all() {
            line.nursery.end();
        }
        self.boots.end();
    }
}

fn peek(cell: &Cell) -> Option<Arc<Line>> {
    match cell.try_lock() {
        Ok(place) => place.clone(),
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner().clone(),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// Removes what is left of a line that has no backend any more.
pub(super) fn remove_directory(directory: &Path) -> Result<(), PathError> {
    claim::remove(directory).map_err(PathError::at("remove", directory))
}
