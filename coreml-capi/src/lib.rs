//! The portable engine for everything that is not Rust: `libcoreml_portable_c` as a shared and a static library.
//!
//! It exports `cml_bridge_portable` of `coreml_bridge.h`, whose table does all the work, and
//! [`cml_portable_live_objects`] (`coreml_portable.h`), by which a binding tests that it releases what it makes.
//!
//! ```
//! let bridge = coreml_portable_c::cml_bridge_portable();
//! assert!(!bridge.is_null());
//! ```

pub use coreml_portable::cml_bridge_portable;

/// How many objects of the table are alive in this process: models, states, results, values, errors and blobs.
///
/// ```
/// assert_eq!(coreml_portable_c::cml_portable_live_objects(), 0);
/// ```
// SAFETY: no other symbol of this name exists: the prefix `cml_portable_` is this crate's.
#[unsafe(no_mangle)]
pub extern "C" fn cml_portable_live_objects() -> usize {
    coreml_portable::live_objects().total()
}
