//! Counts of the objects that callers hold, so that tests can show that nothing leaks.

use std::sync::atomic::{AtomicUsize, Ordering};

#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Error,
    Blob,
    Model,
    State,
    Value,
    Result,
    Request,
}

static COUNTS: [AtomicUsize; 7] = [const { AtomicUsize::new(0) }; 7];

/// Counts the object that holds it.
#[derive(Debug)]
pub(crate) struct Live(Kind);

impl Live {
    pub(crate) fn new(kind: Kind) -> Self {
        COUNTS[kind as usize].fetch_add(1, Ordering::Relaxed);
        Self(kind)
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        COUNTS[self.0 as usize].fetch_sub(1, Ordering::Relaxed);
    }
}

/// How many objects of the portable bridge are alive in this process.
///
/// ```
/// assert_eq!(coreml_portable::live_objects().total(), 0);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it all")]
pub struct LiveObjects {
    pub errors: usize,
    pub blobs: usize,
    pub models: usize,
    pub states: usize,
    pub values: usize,
    pub results: usize,
    pub requests: usize,
}

impl LiveObjects {
    /// All kinds together.
    #[must_use]
    pub fn total(&self) -> usize {
        self.errors + self.blobs + self.models + self.states + self.values + self.results + self.requests
    }
}

/// Counts the objects that are alive now.
#[must_use]
pub fn live_objects() -> LiveObjects {
    let count = |kind: Kind| COUNTS[kind as usize].load(Ordering::Relaxed);
    LiveObjects {
        errors: count(Kind::Error),
        blobs: count(Kind::Blob),
        models: count(Kind::Model),
        states: count(Kind::State),
        values: count(Kind::Value),
        results: count(Kind::Result),
        requests: count(Kind::Request),
    }
}
