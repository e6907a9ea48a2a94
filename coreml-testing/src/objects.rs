//! Handles that are numbers.
//!
//! A handle that the fake hands out is `fake number << 40 | serial << 4`, dressed up as a pointer that nobody follows. So a
//! handle that is dead, or was never alive, is found in no table: it is counted, and nothing else happens.

use std::{
    any::Any,
    collections::HashMap,
    ptr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, ThreadId},
};

use coreml_sys::{CmlBlob, CmlError, CmlModel, CmlRequest, CmlResult, CmlState, CmlValue};

use crate::fake::Fake;

const FAKE_SHIFT: u32 = 40;
const SERIAL_SHIFT: u32 = 4;

/// Every fake of the process, by its number less one.
static FAKES: RwLock<Vec<&'static Fake>> = RwLock::new(Vec::new());

/// What callers can do wrong.
#[derive(Clone, Copy)]
pub(crate) enum Rule {
    DeadHandle,
    WrongHandle,
    Overlap,
    WrongThread,
}

/// The kinds of handles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sort {
    Blob,
    Error,
    Model,
    Request,
    Result,
    State,
    Value,
}

/// A C type of the table whose handles the fake hands out.
pub(crate) trait Handle {
    const SORT: Sort;
}

macro_rules! handles {
    ($($handle:ty => $sort:ident;)*) => {
        $(impl Handle for $handle {
            const SORT: Sort = Sort::$sort;
        })*
    };
}

handles! {
    CmlBlob => Blob;
    CmlError => Error;
    CmlModel => Model;
    CmlRequest => Request;
    CmlResult => Result;
    CmlState => State;
    CmlValue => Value;
}

/// How many objects of each kind are alive.
#[derive(Default)]
pub(crate) struct Live {
    pub(crate) blobs: usize,
    pub(crate) errors: usize,
    pub(crate) models: usize,
    pub(crate) requests: usize,
    pub(crate) results: usize,
    pub(crate) states: usize,
    pub(crate) values: usize,
}

/// Something alive behind a handle.
pub(crate) struct Entry {
    pub(crate) fake: &'static Fake,
    sort: Sort,
    /// The thread that made it.
    home: ThreadId,
    count: AtomicUsize,
    /// [`IDLE`], or what runs.
    running: AtomicU8,
    object: Box<dyn Any + Send + Sync>,
}

impl Entry {
    /// The object, which is of the type that its maker gave it.
    pub(crate) fn object<T: Any>(&self) -> Option<&T> {
        self.object.downcast_ref()
    }

    /// Counts a call from another thread than the maker's.
    pub(crate) fn check_thread(&self) {
        if self.home != thread::current().id() {
            self.fake.objects.report(Rule::WrongThread);
        }
    }

    /// Marks a call of class \[S\] that somebody waits for; none if another one is running, which is counted.
    pub(crate) fn enter(self: &Arc<Self>) -> Option<Running> {
        self.begin(WAITED_FOR)
    }

    /// Marks an asynchronous call.
    pub(crate) fn enter_for_long(self: &Arc<Self>) -> Option<Running> {
        self.begin(ASYNCHRONOUS)
    }

    fn begin(self: &Arc<Self>, how: u8) -> Option<Running> {
        match self.running.compare_exchange(IDLE, how, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => Some(Running(Arc::clone(self))),
            // A caller who does not know that it is still running finds out so.
            Err(ASYNCHRONOUS) => None,
            Err(_) => {
                self.fake.objects.report(Rule::Overlap);
                None
            }
        }
    }
}

const IDLE: u8 = 0;
const WAITED_FOR: u8 = 1;
const ASYNCHRONOUS: u8 = 2;

/// A call of class \[S\] that is running.
pub(crate) struct Running(Arc<Entry>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.store(IDLE, Ordering::Release);
    }
}

/// The objects of one fake.
pub(crate) struct Objects {
    number: u64,
    serial: AtomicU64,
    entries: Mutex<HashMap<u64, Arc<Entry>>>,
    loads: AtomicUsize,
    broken: [AtomicUsize; 4],
}

impl Objects {
    /// Makes a fake that can be found by its handles.
    pub(crate) fn install(make: impl FnOnce(Objects) -> Fake) -> &'static Fake {
        let mut fakes = FAKES.write().unwrap_or_else(PoisonError::into_inner);
        let number = fakes.len() as u64 + 1;
        let fake: &'static Fake = Box::leak(Box::new(make(Objects {
            number,
            serial: AtomicU64::new(1),
            entries: Mutex::new(HashMap::new()),
            loads: AtomicUsize::new(0),
            broken: Default::default(),
        })));
        fakes.push(fake);
        fake
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self, rule: Rule) {
        self.broken[rule as usize].fetch_add(1, Ordering::AcqRel);
    }

    /// How often a rule was broken.
    pub(crate) fn broken(&self, rule: Rule) -> usize {
        self.broken[rule as usize].load(Ordering::Acquire)
    }

    /// How many models were ever loaded.
    pub(crate) fn loads(&self) -> usize {
        self.loads.load(Ordering::Acquire)
    }

    pub(crate) fn live(&self) -> Live {
        let mut live = Live::default();
        for entry in self.lock().values() {
            *match entry.sort {
                Sort::Blob => &mut live.blobs,
                Sort::Error => &mut live.errors,
                Sort::Model => &mut live.models,
                Sort::Request => &mut live.requests,
                Sort::Result => &mut live.results,
                Sort::State => &mut live.states,
                Sort::Value => &mut live.values,
            } += 1;
        }
        live
    }
}

/// A new handle, with one count.
pub(crate) fn hand_out<H: Handle>(fake: &'static Fake, object: impl Any + Send + Sync) -> *mut H {
    hand_out_to(fake, thread::current().id(), object)
}

/// A new handle, with one count, for another thread than the one that makes it.
pub(crate) fn hand_out_to<H: Handle>(
    fake: &'static Fake,
    home: ThreadId,
    object: impl Any + Send + Sync,
) -> *mut H {
    let objects = &fake.objects;
    let serial = objects.serial.fetch_add(1, Ordering::Relaxed);
    let id = objects.number << FAKE_SHIFT | serial << SERIAL_SHIFT;
    if H::SORT == Sort::Model {
        objects.loads.fetch_add(1, Ordering::AcqRel);
    }
    let entry = Entry {
        fake,
        sort: H::SORT,
        home,
        count: AtomicUsize::new(1),
        running: AtomicU8::new(IDLE),
        object: Box::new(object),
    };
    objects.lock().insert(id, Arc::new(entry));
    ptr::without_provenance_mut(id as usize)
}

fn fake_of(id: u64) -> Option<&'static Fake> {
    let index = usize::try_from((id >> FAKE_SHIFT).checked_sub(1)?).ok()?;
    FAKES.read().unwrap_or_else(PoisonError::into_inner).get(index).copied()
}

/// What is behind a handle. A dead handle, and one of another kind, is counted.
pub(crate) fn find<H: Handle>(handle: *const H) -> Option<Arc<Entry>> {
    let id = handle.addr() as u64;
    let fake = fake_of(id)?;
    let entry = fake.objects.lock().get(&id).cloned();
    let Some(entry) = entry else {
        fake.objects.report(Rule::DeadHandle);
        return None;
    };
    if entry.sort != H::SORT {
        fake.objects.report(Rule::WrongHandle);
        return None;
    }
    Some(entry)
}

/// One count more.
pub(crate) fn retain<H: Handle>(handle: *const H) {
    if let Some(entry) = find(handle) {
        entry.count.fetch_add(1, Ordering::AcqRel);
    }
}

/// One count less; at none the object is gone, and no call may be running on it. Null is nothing.
pub(crate) fn release<H: Handle>(handle: *const H) {
    if handle.is_null() {
        return;
    }
    let Some(entry) = find(handle) else { return };
    if matches!(entry.sort, Sort::Model | Sort::State) {
        entry.check_thread();
    }
    let_go(handle);
}

/// One count less, on whatever thread: what an asynchronous call kept.
pub(crate) fn let_go<H: Handle>(handle: *const H) {
    let Some(entry) = find(handle) else { return };
    if entry.count.fetch_sub(1, Ordering::AcqRel) == 1 {
        if entry.running.load(Ordering::Acquire) != IDLE {
            entry.fake.objects.report(Rule::Overlap);
        }
        // Not dropped under the lock: an object may release others.
        let removed = entry.fake.objects.lock().remove(&(handle.addr() as u64));
        drop(removed);
    }
}
