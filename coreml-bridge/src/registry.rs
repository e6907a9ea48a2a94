//! The models of a thread.
//!
//! A [`ModelRef`] is a number, and the only thing about a model that travels. Each thread has a registry of its own, without
//! a lock, in which a reference stands for that thread's own instance of the model; on a thread that has none it stands for
//! nothing.

use core::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};
use std::{cell::RefCell, collections::HashMap, path::Path};

use crate::{Bridge, Config, CoreMlHandle, Error};

/// A name for a model that can go anywhere: a number, unique in the process.
///
/// ```
/// use coreml_bridge::ModelRef;
///
/// let model = ModelRef::new();
/// assert_ne!(model, ModelRef::new());
/// let same = std::thread::spawn(move || model).join().unwrap();
/// assert_eq!(model, same);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelRef(u64);

impl ModelRef {
    /// A reference that nobody has yet, and that stands for nothing until a model is registered under it.
    #[expect(clippy::new_without_default, reason = "a default would promise equal values")]
    #[must_use]
    pub fn new() -> ModelRef {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        ModelRef(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// The number.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "model-{}", self.0)
    }
}

thread_local! {
    /// Dropped, and the models with it, when the thread ends.
    static MODELS: RefCell<HashMap<ModelRef, CoreMlHandle>> = RefCell::new(HashMap::new());
}

/// Puts a model into this thread's registry, under a new reference.
pub fn register_model(handle: CoreMlHandle) -> ModelRef {
    let model_ref = ModelRef::new();
    register_model_as(model_ref, handle);
    model_ref
}

/// Puts a model into this thread's registry under a given reference, so that several threads can each have their own
/// instance under one name. Returns the model that had it before.
pub fn register_model_as(model_ref: ModelRef, handle: CoreMlHandle) -> Option<CoreMlHandle> {
    // While the thread ends there is no registry any more; then the handle is released here.
    MODELS.try_with(|models| models.borrow_mut().insert(model_ref, handle)).ok().flatten()
}

/// The model that a reference stands for on this thread, if any.
#[must_use]
pub fn get_model_handle(model_ref: ModelRef) -> Option<CoreMlHandle> {
    MODELS.try_with(|models| models.borrow().get(&model_ref).cloned()).ok().flatten()
}

/// Loads a model with the platform's bridge and the default configuration, and registers it on this thread.
///
/// Blocks for as long as it takes. The reference means this thread's model and nothing elsewhere: `coreml-client`, for other threads and
/// async code, loads models of its own.
///
/// # Errors
/// As [`Bridge::load`].
///
/// ```
/// assert!(coreml_bridge::load_model("no/such/model.mlpackage").is_err());
/// ```
pub fn load_model(path: impl AsRef<Path>) -> Result<ModelRef, Error> {
    Bridge::platform().load(path, &Config::default()).map(register_model)
}

/// Takes a model out of this thread's registry. It is released when the handle, and every clone of it, is dropped.
pub fn unload_model(model_ref: ModelRef) -> Option<CoreMlHandle> {
    MODELS.try_with(|models| models.borrow_mut().remove(&model_ref)).ok().flatten()
}
