//! A fake Core ML bridge that misbehaves on demand and counts what is done to it.
//!
//! [`FakeBridge`] fills the whole table of `coreml_bridge.h` with functions of its own: models come from a JSON
//! description, and a closure computes outputs from inputs. It can refuse, block, panic, answer late, pad its outputs, keep
//! inputs after the return, and say nothing about why it failed ([`Behaviour`], [`Outcome`], [`Gate`]).
//!
//! Handles are numbers, never addresses: a handle that is used after its release, released twice, or given to the wrong
//! slot is found in no table and counted ([`Counts`]); it is never undefined behaviour.
//! [`FakeBridge::assert_clean`] at the end of a test shows that nothing leaked and nobody broke the rules.
//!
//! Any number of fakes live side by side, so that tests run in parallel.
//!
//! ```
//! use coreml_bridge::{Config, Features, Tensor};
//! use coreml_testing::FakeBridge;
//!
//! let fake = FakeBridge::new();
//! let model = fake.bridge().load("any/path.mlpackage", &Config::default())?;
//! let outputs = model.predict(&Features::new().with("x", Tensor::from_vec(&[2], vec![1.0_f32, 2.0])?))?;
//! assert_eq!(outputs.tensor("y")?.as_slice::<f32>()?, [2.0, 4.0]);
//! drop(model);
//! fake.assert_clean();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod differential;
mod fake;
mod gate;
mod log;
mod objects;
mod slots;
mod tokenizer;

pub use fake::{Backings, Behaviour, Builder, Counts, FakeBridge, Outcome, REFUSAL};
pub use gate::Gate;
pub use tokenizer::byte_tokenizer;

/// The messages of an error and of all that caused it, the last cause last.
///
/// ```
/// let error = coreml_bridge::Bridge::platform().load("no/such/model.mlpackage", &Default::default()).unwrap_err();
/// let messages = coreml_testing::messages(&error);
/// assert!(messages.len() > 1 && messages[0].contains("no/such/model.mlpackage"), "{messages:?}");
/// ```
#[must_use]
pub fn messages(error: &dyn std::error::Error) -> Vec<String> {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect()
}
