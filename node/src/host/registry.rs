//! All sandboxes that live, and a bounded number of those that have ended.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::resident::Resident;

/// The sandboxes, by the order of their creation.
#[derive(Debug)]
pub(super) struct Registry {
    all: RwLock<All>,
    /// Records of ended ones that are kept.
    ended_most: usize,
}

#[derive(Debug, Default)]
struct All {
    by_number: BTreeMap<u64, Arc<Resident>>,
    by_id: HashMap<String, u64>,
    by_key: HashMap<String, u64>,
    next: u64,
    /// In the order of their ends.
    ended: VecDeque<u64>,
}

/// What came of entering.
#[derive(Debug)]
pub(super) enum Entered {
    New(Arc<Resident>),
    /// It was wished for under this key before.
    Known(Arc<Resident>),
}

impl Registry {
    pub(super) fn new(ended_most: u32) -> Self {
        Self {
            all: RwLock::default(),
            ended_most: usize::try_from(ended_most).unwrap_or(usize::MAX),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, All> {
        self.all.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, All> {
        self.all.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a new sandbox in, which `make` makes of its number.
    pub(super) fn enter(
        &self,
        key: Option<&str>,
        make: impl FnOnce(u64) -> Arc<Resident>,
    ) -> Entered {
        let mut all = self.write();
        if let Some(known) = key.and_then(|key| all.of_key(key)) {
            return Entered::Known(known);
        }
        let resident = make(all.next);
        all.next += 1;
        all.take_in(&resident);
        Entered::New(resident)
    }

    /// The one that was wished for under this key.
    pub(super) fn of_key(&self, key: &str) -> Option<Arc<Resident>> {
        self.read().of_key(key)
    }

    pub(super) fn get(&self, id: &str) -> Option<Arc<Resident>> {
        let all = self.read();
        all.by_number.get(all.by_id.get(id)?).cloned()
    }

    /// All of them, the oldest first.
    pub(super) fn all(&self) -> Vec<Arc<Resident>> {
        self.read().by_number.values().cloned().collect()
    }

    /// Notes that one has ended; those whose records are too many now, which are gone.
    pub(super) fn ended(&self, resident: &Resident) -> Vec<Arc<Resident>> {
        let mut all = self.write();
        if all.by_number.contains_key(&resident.number) {
            all.ended.push_back(resident.number);
        }
        let mut gone = Vec::new();
        while all.ended.len() > self.ended_most {
            let oldest = all.ended.pop_front();
            gone.extend(oldest.and_then(|number| all.take_out(number)));
        }
        gone
    }

    /// Forgets one; whether it was there.
    pub(super) fn remove(&self, resident: &Resident) -> bool {
        let mut all = self.write();
        all.ended.retain(|number| *number != resident.number);
        all.take_out(resident.number).is_some()
    }
}

impl All {
    fn of_key(&self, key: &str) -> Option<Arc<Resident>> {
        self.by_number.get(self.by_key.get(key)?).cloned()
    }

    fn take_in(&mut self, resident: &Arc<Resident>) {
        let number = resident.number;
        self.by_id.insert(resident.id.clone(), number);
        if let Some(key) = &resident.key {
            self.by_key.insert(key.clone(), number);
        }
        self.by_number.insert(number, Arc::clone(resident));
    }

    fn take_out(&mut self, number: u64) -> Option<Arc<Resident>> {
        let resident = self.by_number.remove(&number)?;
        self.by_id.remove(&resident.id);
        if let Some(key) = &resident.key {
            self.by_key.remove(key);
        }
        Some(resident)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::model::{Limits, Phase};
    use crate::host::resident::{Made, State};
    use crate::host::wish::Size;

    fn enter(registry: &Registry, id: &str, key: Option<&str>) -> Entered {
        registry.enter(key, |number| {
            let made = Made {
                id: id.into(),
                number,
                wish: serde_json::from_str(r#"{"source":{"image":"i"}}"#).unwrap(),
                key: key.map(Into::into),
                size: Size {
                    memory_mib: 64,
                    vcpus: 1,
                    scratch_mib: 16,
                },
                limits: Limits::default(),
                created_ms: 0,
                directory: "/nowhere".into(),
            };
            Arc::new(Resident::new(made, State::new(Phase::Creating)))
        })
    }

    fn new(registry: &Registry, id: &str, key: Option<&str>) -> Arc<Resident> {
        match enter(registry, id, key) {
            Entered::New(resident) => resident,
            Entered::Known(known) => panic!("{known:?}"),
        }
    }

    #[test]
    fn a_key_means_one_sandbox_until_its_record_is_gone() {
        let registry = Registry::new(10);
        let first = new(&registry, "a", Some("k"));
        let Entered::Known(again) = enter(&registry, "b", Some("k")) else {
            panic!("made twice");
        };
        assert!(Arc::ptr_eq(&first, &again));
        assert!(registry.get("b").is_none());
        assert!(registry.remove(&first));
        assert!(!registry.remove(&first));
        new(&registry, "c", Some("k"));
    }

    #[test]
    fn of_the_ended_the_oldest_goes_first_and_the_living_stay() {
        let registry = Registry::new(2);
        let all = ["a", "b", "c", "d"].map(|id| new(&registry, id, None));
        assert!(registry.ended(&all[2]).is_empty());
        assert!(registry.ended(&all[0]).is_empty());
        let gone = registry.ended(&all[3]);
        assert_eq!(gone.len(), 1);
        assert_eq!(gone[0].id, "c");
        registry.remove(&all[0]);
        assert!(registry.ended(&all[1]).is_empty());
        let left: Vec<String> = registry.all().iter().map(|it| it.id.clone()).collect();
        assert_eq!(left, ["b", "d"]);
        // Removed before it could be noted.
        let late = new(&registry, "e", None);
        registry.remove(&late);
        assert!(registry.ended(&late).is_empty());
        assert_eq!(registry.all().len(), 2);
    }
}
