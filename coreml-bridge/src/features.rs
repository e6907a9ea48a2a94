//! Named feature values: the inputs or the outputs of one prediction.

use std::sync::Arc;

use thiserror::Error;

use crate::{Dictionary, Image, Kind, Sequence, Tensor, Value};

/// Why a feature cannot be had as asked.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FeatureError {
    /// There is no feature of this name.
    #[error("there is no feature `{feature}`, only {known:?}")]
    Missing {
        /// The name asked for.
        feature: String,
        /// The names there are.
        known: Vec<String>,
    },
    /// The feature is of another kind.
    #[error("the feature `{feature}` is of kind {found}, not {expected}")]
    Kind {
        /// The name asked for.
        feature: String,
        /// The kind asked for.
        expected: Kind,
        /// The kind it is of.
        found: Kind,
    },
}

/// Feature values by name, in the order of insertion.
///
/// ```
/// use coreml_bridge::{Features, Tensor};
///
/// let inputs = Features::new().with("image", Tensor::from_vec(&[2], vec![0.0_f32, 1.0])?).with("threshold", 0.5);
/// assert_eq!(inputs.tensor("image")?.shape(), [2]);
/// assert_eq!(inputs.double("threshold")?, 0.5);
/// assert_eq!(inputs.image("threshold").unwrap_err().to_string(), "the feature `threshold` is of kind double, not image");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Features {
    // Models have a handful of features: a list beats a map.
    entries: Vec<(Arc<str>, Value)>,
}

impl Features {
    /// None yet.
    #[must_use]
    pub fn new() -> Features {
        Features::default()
    }

    /// These and one more; a feature of the same name is replaced.
    #[must_use]
    pub fn with(mut self, name: impl Into<Arc<str>>, value: impl Into<Value>) -> Features {
        self.insert(name, value);
        self
    }

    /// Adds a feature, and returns the value that had its name, if any; the new one takes its place.
    pub fn insert(&mut self, name: impl Into<Arc<str>>, value: impl Into<Value>) -> Option<Value> {
        let (name, value) = (name.into(), value.into());
        match self.entries.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => Some(core::mem::replace(old, value)),
            None => {
                self.entries.push((name, value));
                None
            }
        }
    }

    /// Takes a feature out.
    pub fn remove(&mut self, name: &str) -> Option<Value> {
        let position = self.entries.iter().position(|(known, _)| **known == *name)?;
        Some(self.entries.remove(position).1)
    }

    /// The value of a feature.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.entries.iter().find(|(known, _)| **known == *name).map(|(_, value)| value)
    }

    /// Names and values, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> + Clone {
        self.entries.iter().map(|(name, value)| (&**name, value))
    }

    /// The names, in order.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> + Clone {
        self.entries.iter().map(|(name, _)| &**name)
    }

    /// How many features there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no feature.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of all payloads, see [`Value::byte_len`].
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.entries.iter().map(|(_, value)| value.byte_len()).sum()
    }

    fn value(&self, name: &str) -> Result<&Value, FeatureError> {
        self.get(name).ok_or_else(|| FeatureError::Missing {
            feature: name.to_owned(),
            known: self.names().map(str::to_owned).collect(),
        })
    }
}

/// The getters of one kind each differ in nothing else.
macro_rules! typed {
    ($(#[$doc:meta])* $method:ident, $variant:ident, $type:ty, $value:ident => $result:expr) => {
        $(#[$doc])*
        ///
        /// # Errors
        /// [`FeatureError`] if there is no such feature, or if it is of another kind.
        pub fn $method(&self, name: &str) -> Result<$type, FeatureError> {
            match self.value(name)? {
                Value::$variant($value) => Ok($result),
                other => Err(FeatureError::Kind {
                    feature: name.to_owned(),
                    expected: Kind::$variant,
                    found: other.kind(),
                }),
            }
        }
    };
}

impl Features {
    typed!(/// A tensor.
        tensor, Tensor, &Tensor, value => value);
    typed!(/// An image.
        image, Image, &Image, value => value);
    typed!(/// A 64-bit integer.
        int64, Int64, i64, value => *value);
    typed!(/// A 64-bit float.
        double, Double, f64, value => *value);
    typed!(/// Text.
        string, String, &str, value => value);
    typed!(/// Numbers by key.
        dictionary, Dictionary, &Dictionary, value => value);
    typed!(/// A list.
        sequence, Sequence, &Sequence, value => value);
}

impl<N: Into<Arc<str>>, V: Into<Value>> FromIterator<(N, V)> for Features {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(entries: I) -> Self {
        let mut features = Features::new();
        features.extend(entries);
        features
    }
}

impl<N: Into<Arc<str>>, V: Into<Value>> Extend<(N, V)> for Features {
    fn extend<I: IntoIterator<Item = (N, V)>>(&mut self, entries: I) {
        for (name, value) in entries {
            self.insert(name, value);
        }
    }
}

impl IntoIterator for Features {
    type Item = (Arc<str>, Value);
    type IntoIter = std::vec::IntoIter<(Arc<str>, Value)>;

    fn into_iter(self) -> Self::IntoIter {
        self.entries.into_iter()
    }
}
