//! How tests steer the Core ML work-alike under the Objective-C shim (feature `objc`, off Apple).
//!
//! With the feature, [`cml_bridge_coreml`](crate::cml_bridge_coreml) is there on Linux too: the shim that Apple platforms
//! get, on classes that look like Core ML's and pass every call on to a delegate, another bridge. It runs models only once
//! [`cml_workalike_set_delegate`] has named one. The declarations are those of `bridge-objc/workalike/cml_workalike.h`.

use core::ffi::{c_char, c_int, c_long};

use crate::CmlBridge;

/// Rows of outputs are padded to 64 bytes, with rubbish between.
pub const CML_HOSTILE_PADDED: u32 = 1 << 0;
/// Outputs are always fresh arrays, whatever backings are given.
pub const CML_HOSTILE_IGNORE_BACKINGS: u32 = 1 << 1;
/// A backing is written, but another object on its memory is answered.
pub const CML_HOSTILE_ALIAS_BACKINGS: u32 = 1 << 2;
/// Failures come without an `NSError`.
pub const CML_HOSTILE_NIL_ERROR: u32 = 1 << 3;
/// Failures come as errors four deep.
pub const CML_HOSTILE_NESTED_ERRORS: u32 = 1 << 4;
/// Inputs are kept a while after a prediction and released on another thread.
pub const CML_HOSTILE_LATE_RELEASE: u32 = 1 << 5;
/// Arrays announce fewer bytes than they reach over.
pub const CML_HOSTILE_SHORT_BYTES: u32 = 1 << 6;
/// An array that cannot be made calls its deallocator.
pub const CML_HOSTILE_EAGER_FREE: u32 = 1 << 7;
/// A batch comes back without its last row.
pub const CML_HOSTILE_LOSE_ROW: u32 = 1 << 8;
/// Completions are called as late as inputs are released.
pub const CML_HOSTILE_LATE_ANSWER: u32 = 1 << 9;
/// Completions are called before the method returns, on its thread.
pub const CML_HOSTILE_EARLY_ANSWER: u32 = 1 << 10;
/// A load does not return while this mode holds.
pub const CML_HOSTILE_STUCK_LOAD: u32 = 1 << 11;
/// What takes a completion throws, and answers all the same.
pub const CML_HOSTILE_THROW_AFTER: u32 = 1 << 12;

/// No misbehaviour.
pub const CML_INJECT_NOTHING: c_int = 0;
/// An `NSException`.
pub const CML_INJECT_NSEXCEPTION: c_int = 1;
/// A thrown object that is no `NSException`.
pub const CML_INJECT_OBJECT: c_int = 2;
/// A failure, where a method can report one.
pub const CML_INJECT_FAILURE: c_int = 3;
/// An `NSException` that throws another one when its cause is read.
pub const CML_INJECT_TWOFOLD: c_int = 4;

unsafe extern "C" {
    /// Names the bridge that really runs models. It must be set before the first model is loaded, and never change.
    pub fn cml_workalike_set_delegate(delegate: *const CmlBridge);
    /// Sets the hostile modes of the whole process (`CML_HOSTILE_*`).
    pub safe fn cml_workalike_set_hostile(modes: u32);
    /// How long [`CML_HOSTILE_LATE_RELEASE`] keeps inputs; 1000 to begin with.
    pub safe fn cml_workalike_set_late_release_ms(milliseconds: u32);
    /// Makes the `nth` method called from now on misbehave once (`CML_INJECT_*`).
    pub safe fn cml_workalike_inject(what: c_int, nth: c_long);
    /// The method where the misbehaviour went off, or null.
    pub safe fn cml_workalike_injected() -> *const c_char;
    /// The registry id of the GPU that the last load preferred, or 0.
    pub safe fn cml_workalike_preferred() -> u64;
    /// Objects of the work-alike that are alive.
    pub safe fn cml_workalike_live_objects() -> c_long;
    /// Rules of Core ML that were broken.
    pub safe fn cml_workalike_faults() -> c_long;
    /// Handles that the shim has given out and that are not released.
    pub safe fn cml_test_live_handles() -> c_long;
}
