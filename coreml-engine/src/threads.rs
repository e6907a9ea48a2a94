//! Threads inside one prediction.
//!
//! One pool per size in the process, shared by all sessions that ask for that size, so that many instances do not make many
//! threads. A prediction on one thread runs where it is called: handing it to another core costs more than a small model takes.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use rayon::{ThreadPool, ThreadPoolBuilder};

/// Where a session's kernels run.
#[derive(Clone, Debug)]
pub(crate) enum Threads {
    /// On the calling thread.
    Caller,
    /// On a shared pool.
    Pool(Arc<ThreadPool>),
}

impl Threads {
    pub(crate) fn new(count: NonZeroUsize) -> Self {
        static POOLS: LazyLock<Mutex<HashMap<usize, Weak<ThreadPool>>>> = LazyLock::new(Mutex::default);
        if count.get() == 1 {
            return Self::Caller;
        }
        let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get(&count.get()).and_then(Weak::upgrade) {
            return Self::Pool(pool);
        }
        let built = ThreadPoolBuilder::new()
            .num_threads(count.get())
            .thread_name(|i| format!("coreml-engine-{i}"))
            .build();
        match built {
            Ok(pool) => {
                let pool = Arc::new(pool);
                pools.insert(count.get(), Arc::downgrade(&pool));
                Self::Pool(pool)
            }
            // The system gives no more threads: the model still runs.
            Err(_) => Self::Caller,
        }
    }

    /// Runs `f` with this many threads at its disposal.
    pub(crate) fn run<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        match self {
            Self::Caller => on_caller(f),
            Self::Pool(pool) => pool.install(f),
        }
    }
}

/// Makes the calling thread a pool of its own, once, so that the arithmetic library finds one thread and stays on it.
///
/// rayon keeps its record of such a thread (a few KB) for ever, so whoever predicts often does it on threads that live long.
pub(crate) fn on_caller<R>(f: impl FnOnce() -> R) -> R {
    thread_local! {
        static SOLO: OnceCell<Option<ThreadPool>> = const { OnceCell::new() };
    }
    SOLO.with(|solo| {
        // Already a member of somebody's pool: then that pool's size holds.
        solo.get_or_init(|| ThreadPoolBuilder::new().num_threads(1).use_current_thread().build().ok());
    });
    f()
}
