//! One way to take a lock.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Takes a mutex, poisoned or not. Poison means that another thread panicked while it held the lock; that
/// panic ends the sandbox by itself, and until then what is behind the lock is no worse than a device
/// with a hostile driver, which every device here copes with.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
