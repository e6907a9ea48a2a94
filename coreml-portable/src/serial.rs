//! Rule 1 of the table: one call at a time, and a breach is answered, not undefined.

use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, Ordering};

use crate::error::Failure;

const WRITING: isize = -1;

/// Something that calls may read together or change alone. Nobody waits: who comes too early gets `CML_BUSY`.
#[derive(Debug)]
pub(crate) struct Serial<T> {
    /// Readers, or [`WRITING`].
    users: AtomicIsize,
    name: &'static str,
    inner: UnsafeCell<T>,
}

// SAFETY: `users` admits many readers or one writer, so `&T` is shared only if `T: Sync` allows it and `&mut T` moves between
// threads only if `T: Send` does.
unsafe impl<T: Send + Sync> Sync for Serial<T> {}

impl<T> Serial<T> {
    pub(crate) fn new(name: &'static str, inner: T) -> Self {
        Self { users: AtomicIsize::new(0), name, inner: UnsafeCell::new(inner) }
    }

    /// Reads; other readers may do so too.
    pub(crate) fn read(&self) -> Result<Reading<'_, T>, Failure> {
        let admit = |users: isize| (users != WRITING).then_some(users + 1);
        self.users
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, admit)
            .map(|_| Reading { serial: self })
            .map_err(|_| Failure::busy(self.name))
    }

    /// Changes, alone.
    pub(crate) fn write(&self) -> Result<Writing<&Self, T>, Failure> {
        Self::write_through(self)
    }

    /// Changes, alone, for as long as it takes: what an asynchronous call takes with it.
    pub(crate) fn write_shared(self: &Arc<Self>) -> Result<Writing<Arc<Self>, T>, Failure> {
        Self::write_through(Arc::clone(self))
    }

    fn write_through<P: Deref<Target = Self>>(serial: P) -> Result<Writing<P, T>, Failure> {
        let admitted = serial.users.compare_exchange(0, WRITING, Ordering::Acquire, Ordering::Relaxed);
        match admitted {
            Ok(_) => Ok(Writing { serial }),
            Err(_) => Err(Failure::busy(serial.name)),
        }
    }
}

/// Proof that nobody writes.
pub(crate) struct Reading<'a, T> {
    serial: &'a Serial<T>,
}

impl<T> Deref for Reading<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: this guard is counted in `users`, so no `Writing` exists until it is dropped.
        unsafe { &*self.serial.inner.get() }
    }
}

impl<T> Drop for Reading<'_, T> {
    fn drop(&mut self) {
        self.serial.users.fetch_sub(1, Ordering::Release);
    }
}

/// Proof that nobody else reads or writes. `P` is a reference, or a count, of what is taken.
pub(crate) struct Writing<P: Deref<Target = Serial<T>>, T> {
    serial: P,
}

impl<P: Deref<Target = Serial<T>>, T> Deref for Writing<P, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: `users` is `WRITING` until this guard is dropped, so no other guard exists.
        unsafe { &*self.serial.inner.get() }
    }
}

impl<P: Deref<Target = Serial<T>>, T> DerefMut for Writing<P, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and `&mut self` makes this the only reference through the guard.
        unsafe { &mut *self.serial.inner.get() }
    }
}

impl<P: Deref<Target = Serial<T>>, T> Drop for Writing<P, T> {
    fn drop(&mut self) {
        self.serial.users.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_share_and_a_writer_is_alone() {
        let serial = Serial::new("thing", 1);
        let first = serial.read().unwrap();
        let second = serial.read().unwrap();
        assert_eq!(*first + *second, 2);
        assert!(serial.write().is_err());
        drop((first, second));
        *serial.write().unwrap() = 5;
        let writing = serial.write().unwrap();
        assert!(serial.read().is_err() && serial.write().is_err());
        drop(writing);
        assert_eq!(*serial.read().unwrap(), 5);
    }

    #[test]
    fn a_shared_writer_takes_it_to_another_thread() {
        let serial = Arc::new(Serial::new("thing", 1));
        let mut writing = serial.write_shared().unwrap();
        assert!(serial.read().is_err() && serial.write().is_err());
        std::thread::spawn(move || *writing = 2).join().unwrap();
        assert_eq!(*serial.read().unwrap(), 2);
    }
}
