//! Feature values: what goes into a model and comes out of it.

use core::fmt;
use std::{collections::BTreeMap, sync::Arc};

use coreml_sys::{
    CML_KIND_DICTIONARY, CML_KIND_DOUBLE, CML_KIND_IMAGE, CML_KIND_INT64, CML_KIND_SEQUENCE, CML_KIND_STRING,
    CML_KIND_TENSOR, CmlKind,
};
use serde::{Deserialize, Serialize};

use crate::{Image, Tensor};

/// The kind of a feature value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A 64-bit integer.
    Int64,
    /// A 64-bit float.
    Double,
    /// Text.
    String,
    /// An [`Image`].
    Image,
    /// A [`Tensor`].
    Tensor,
    /// A [`Dictionary`].
    Dictionary,
    /// A [`Sequence`].
    Sequence,
}

impl Kind {
    /// The name that model descriptions use, for example `tensor`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Int64 => "int64",
            Kind::Double => "double",
            Kind::String => "string",
            Kind::Image => "image",
            Kind::Tensor => "tensor",
            Kind::Dictionary => "dictionary",
            Kind::Sequence => "sequence",
        }
    }

    /// The number that stands for this kind in the table, which is `MLFeatureType`'s.
    #[must_use]
    pub const fn to_native(self) -> CmlKind {
        match self {
            Kind::Int64 => CML_KIND_INT64,
            Kind::Double => CML_KIND_DOUBLE,
            Kind::String => CML_KIND_STRING,
            Kind::Image => CML_KIND_IMAGE,
            Kind::Tensor => CML_KIND_TENSOR,
            Kind::Dictionary => CML_KIND_DICTIONARY,
            Kind::Sequence => CML_KIND_SEQUENCE,
        }
    }

    /// The kind that a number of the table stands for, if it is known.
    #[must_use]
    pub const fn from_native(number: CmlKind) -> Option<Kind> {
        match number {
            CML_KIND_INT64 => Some(Kind::Int64),
            CML_KIND_DOUBLE => Some(Kind::Double),
            CML_KIND_STRING => Some(Kind::String),
            CML_KIND_IMAGE => Some(Kind::Image),
            CML_KIND_TENSOR => Some(Kind::Tensor),
            CML_KIND_DICTIONARY => Some(Kind::Dictionary),
            CML_KIND_SEQUENCE => Some(Kind::Sequence),
            _ => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What the keys of a dictionary, or the elements of a sequence, are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyKind {
    /// 64-bit integers.
    Int64,
    /// Text.
    String,
}

impl KeyKind {
    /// The same, as the kind of a value.
    #[must_use]
    pub const fn kind(self) -> Kind {
        match self {
            KeyKind::Int64 => Kind::Int64,
            KeyKind::String => Kind::String,
        }
    }
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind().fmt(f)
    }
}

/// Numbers by key, for example the probability of each class. Cloning shares the entries.
#[derive(Clone, Debug, PartialEq)]
pub enum Dictionary {
    /// With integers as keys.
    Int64(Arc<BTreeMap<i64, f64>>),
    /// With text as keys.
    String(Arc<BTreeMap<String, f64>>),
}

impl Dictionary {
    /// What the keys are.
    #[must_use]
    pub fn key_kind(&self) -> KeyKind {
        match self {
            Dictionary::Int64(_) => KeyKind::Int64,
            Dictionary::String(_) => KeyKind::String,
        }
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Dictionary::Int64(entries) => entries.len(),
            Dictionary::String(entries) => entries.len(),
        }
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl FromIterator<(i64, f64)> for Dictionary {
    fn from_iter<I: IntoIterator<Item = (i64, f64)>>(entries: I) -> Self {
        Dictionary::Int64(Arc::new(entries.into_iter().collect()))
    }
}

impl FromIterator<(String, f64)> for Dictionary {
    fn from_iter<I: IntoIterator<Item = (String, f64)>>(entries: I) -> Self {
        Dictionary::String(Arc::new(entries.into_iter().collect()))
    }
}

/// A list of integers or of texts. Cloning shares the elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sequence {
    /// Integers.
    Int64(Arc<[i64]>),
    /// Texts.
    String(Arc<[String]>),
}

impl Sequence {
    /// What the elements are.
    #[must_use]
    pub fn element_kind(&self) -> KeyKind {
        match self {
            Sequence::Int64(_) => KeyKind::Int64,
            Sequence::String(_) => KeyKind::String,
        }
    }

    /// How many elements there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Sequence::Int64(elements) => elements.len(),
            Sequence::String(elements) => elements.len(),
        }
    }

    /// Whether there is no element.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl FromIterator<i64> for Sequence {
    fn from_iter<I: IntoIterator<Item = i64>>(elements: I) -> Self {
        Sequence::Int64(elements.into_iter().collect())
    }
}

impl FromIterator<String> for Sequence {
    fn from_iter<I: IntoIterator<Item = String>>(elements: I) -> Self {
        Sequence::String(elements.into_iter().collect())
    }
}

/// A feature value: owned, cheap to clone, `Send + Sync`.
///
/// ```
/// use coreml_bridge::{Kind, Tensor, Value};
///
/// assert_eq!(Value::from(Tensor::scalar(1.0_f32)).kind(), Kind::Tensor);
/// assert_eq!(Value::from("a word").kind(), Kind::String);
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Value {
    /// An n-dimensional array of numbers.
    Tensor(Tensor),
    /// An image.
    Image(Image),
    /// A 64-bit integer.
    Int64(i64),
    /// A 64-bit float.
    Double(f64),
    /// Text.
    String(Arc<str>),
    /// Numbers by key.
    Dictionary(Dictionary),
    /// A list of integers or of texts.
    Sequence(Sequence),
}

impl Value {
    /// Which kind of value this is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Value::Tensor(_) => Kind::Tensor,
            Value::Image(_) => Kind::Image,
            Value::Int64(_) => Kind::Int64,
            Value::Double(_) => Kind::Double,
            Value::String(_) => Kind::String,
            Value::Dictionary(_) => Kind::Dictionary,
            Value::Sequence(_) => Kind::Sequence,
        }
    }

    /// Bytes of the payload: what a queue that bounds memory counts. Sharing is not taken into account.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        match self {
            Value::Tensor(tensor) => tensor.byte_len(),
            Value::Image(image) => image.bytes().len(),
            Value::Int64(_) | Value::Double(_) => 8,
            Value::String(text) => text.len(),
            Value::Dictionary(Dictionary::Int64(entries)) => 16 * entries.len(),
            Value::Dictionary(Dictionary::String(entries)) => entries.keys().map(|key| key.len() + 8).sum(),
            Value::Sequence(Sequence::Int64(elements)) => 8 * elements.len(),
            Value::Sequence(Sequence::String(elements)) => elements.iter().map(String::len).sum(),
        }
    }
}

impl From<Tensor> for Value {
    fn from(tensor: Tensor) -> Self {
        Value::Tensor(tensor)
    }
}

impl From<Image> for Value {
    fn from(image: Image) -> Self {
        Value::Image(image)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Value::Int64(number)
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Value::Double(number)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::String(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Value::String(text.into())
    }
}

impl From<Dictionary> for Value {
    fn from(dictionary: Dictionary) -> Self {
        Value::Dictionary(dictionary)
    }
}

impl From<Sequence> for Value {
    fn from(sequence: Sequence) -> Self {
        Value::Sequence(sequence)
    }
}
