//! What a model says of itself: its features, states, functions and metadata.
//!
//! Read once when a model is loaded; predictions are checked against it before anything crosses the table. The JSON form
//! is `docs/abi.md`'s.

use core::fmt;
use std::collections::BTreeMap;

use serde::Deserialize;
use thiserror::Error;

use crate::{Dtype, KeyKind, Kind, PixelFormat, Tensor, Value};

/// What a loaded model says of itself.
///
/// ```
/// use coreml_bridge::{Dtype, ModelDescription};
///
/// let description = ModelDescription::from_json(br#"{
///     "inputs": [{ "name": "image", "optional": false, "kind": "tensor",
///                  "tensor": { "dtype": "float32", "shape": [1, 64], "flexible": { "ranges": [[1, 8], [64, 64]] } } }],
///     "outputs": [{ "name": "digit", "optional": false, "kind": "int64" }]
/// }"#)?;
/// let image = description.input("image").and_then(|feature| feature.kind.tensor()).expect("a tensor");
/// assert!(image.accepts(Dtype::Float32, &[8, 64]).is_ok());
/// assert_eq!(image.accepts(Dtype::Float32, &[9, 64]).unwrap_err().to_string(),
///            "expected shape [1 to 8, 64], found [9, 64]");
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct ModelDescription {
    /// What goes in.
    #[serde(default)]
    pub inputs: Vec<Feature>,
    /// What comes out.
    #[serde(default)]
    pub outputs: Vec<Feature>,
    /// What a stateful model remembers between predictions; always tensors.
    #[serde(default)]
    pub states: Vec<Feature>,
    /// The model's functions.
    #[serde(default)]
    pub functions: Vec<String>,
    /// The function that is loaded.
    #[serde(default)]
    pub function: Option<String>,
    /// The output that holds a classifier's answer.
    #[serde(default)]
    pub predicted_feature: Option<String>,
    /// The output that holds a classifier's probabilities.
    #[serde(default)]
    pub predicted_probabilities: Option<String>,
    /// A classifier's classes.
    #[serde(default)]
    pub class_labels: Vec<ClassLabel>,
    /// Who made the model, and for what.
    #[serde(default)]
    pub metadata: Metadata,
}

impl ModelDescription {
    /// Reads the JSON of `docs/abi.md`. Members that it does not know are passed over.
    ///
    /// # Errors
    /// If it is not JSON, or a member has another form.
    pub fn from_json(json: &[u8]) -> Result<ModelDescription, serde_json::Error> {
        serde_json::from_slice(json)
    }

    /// The input of this name.
    #[must_use]
    pub fn input(&self, name: &str) -> Option<&Feature> {
        self.inputs.iter().find(|feature| feature.name == name)
    }

    /// The output of this name.
    #[must_use]
    pub fn output(&self, name: &str) -> Option<&Feature> {
        self.outputs.iter().find(|feature| feature.name == name)
    }

    /// The state of this name.
    #[must_use]
    pub fn state(&self, name: &str) -> Option<&Feature> {
        self.states.iter().find(|feature| feature.name == name)
    }
}

/// A class of a classifier.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(untagged)]
pub enum ClassLabel {
    /// A number.
    Int64(i64),
    /// A name.
    String(String),
}

/// Who made a model, and for what. Empty = not said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Metadata {
    /// Who made it.
    pub author: String,
    /// Under which terms it may be used.
    pub license: String,
    /// The maker's version.
    pub version: String,
    /// What it does.
    pub description: String,
    /// Whatever else the maker noted.
    pub user: BTreeMap<String, String>,
}

/// One input, output or state.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "FeatureForm")]
#[non_exhaustive]
pub struct Feature {
    /// Its name.
    pub name: String,
    /// What the model's maker says of it.
    pub description: String,
    /// Whether a prediction may go without it.
    pub optional: bool,
    /// What values it takes.
    pub kind: FeatureKind,
}

/// What values a feature takes.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum FeatureKind {
    /// A 64-bit integer.
    Int64,
    /// A 64-bit float.
    Double,
    /// Text.
    String,
    /// An image.
    Image(ImageSpec),
    /// A tensor.
    Tensor(TensorSpec),
    /// Numbers by key.
    Dictionary(DictionarySpec),
    /// A list.
    Sequence(SequenceSpec),
}

impl FeatureKind {
    /// The kind without its details.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            FeatureKind::Int64 => Kind::Int64,
            FeatureKind::Double => Kind::Double,
            FeatureKind::String => Kind::String,
            FeatureKind::Image(_) => Kind::Image,
            FeatureKind::Tensor(_) => Kind::Tensor,
            FeatureKind::Dictionary(_) => Kind::Dictionary,
            FeatureKind::Sequence(_) => Kind::Sequence,
        }
    }

    /// The details of a tensor.
    #[must_use]
    pub fn tensor(&self) -> Option<&TensorSpec> {
        match self {
            FeatureKind::Tensor(spec) => Some(spec),
            _ => None,
        }
    }

    /// The details of an image.
    #[must_use]
    pub fn image(&self) -> Option<&ImageSpec> {
        match self {
            FeatureKind::Image(spec) => Some(spec),
            _ => None,
        }
    }

    /// Whether the feature takes this value.
    ///
    /// # Errors
    /// What was expected, and what was found instead.
    pub fn accepts(&self, value: &Value) -> Result<(), Mismatch> {
        match (self, value) {
            (FeatureKind::Int64, Value::Int64(_))
            | (FeatureKind::Double, Value::Double(_))
            | (FeatureKind::String, Value::String(_)) => Ok(()),
            (FeatureKind::Image(spec), Value::Image(image)) => {
                spec.accepts(image.format(), image.width(), image.height())
            }
            (FeatureKind::Tensor(spec), Value::Tensor(tensor)) => spec.accepts_tensor(tensor),
            (FeatureKind::Dictionary(spec), Value::Dictionary(dictionary)) => {
                // Without entries there is no key of the wrong kind.
                if dictionary.key_kind() == spec.key || dictionary.is_empty() {
                    return Ok(());
                }
                Err(Mismatch::Key { expected: spec.key, found: dictionary.key_kind() })
            }
            (FeatureKind::Sequence(spec), Value::Sequence(sequence)) => {
                if sequence.element_kind() != spec.element && !sequence.is_empty() {
                    return Err(Mismatch::Key { expected: spec.element, found: sequence.element_kind() });
                }
                if !spec.count.contains(sequence.len()) {
                    return Err(Mismatch::Count { expected: spec.count, found: sequence.len() });
                }
                Ok(())
            }
            _ => Err(Mismatch::Kind { expected: self.kind(), found: value.kind() }),
        }
    }
}

/// Says what a caller has to bring, for example `tensor of float32 [1, 64]`.
impl fmt::Display for FeatureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FeatureKind::Int64 | FeatureKind::Double | FeatureKind::String => self.kind().fmt(f),
            FeatureKind::Image(spec) => write!(f, "image of {spec}"),
            FeatureKind::Tensor(spec) => write!(f, "tensor of {spec}"),
            FeatureKind::Dictionary(spec) => write!(f, "dictionary of double by {}", spec.key),
            FeatureKind::Sequence(spec) => write!(f, "sequence of {} {}", spec.count, spec.element),
        }
    }
}

/// What a feature expected, and what it found.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Mismatch {
    /// The value is of another kind.
    #[error("expected kind {expected}, found {found}")]
    Kind {
        /// The feature's kind.
        expected: Kind,
        /// The value's.
        found: Kind,
    },
    /// The tensor has another element type.
    #[error("expected elements of {expected}, found {found}")]
    Dtype {
        /// The feature's element type.
        expected: Dtype,
        /// The tensor's.
        found: Dtype,
    },
    /// The tensor has a shape that the feature does not take.
    #[error("expected shape {expected}, found {found:?}")]
    Shape {
        /// The shapes that the feature takes, in words.
        expected: String,
        /// The tensor's shape.
        found: Vec<usize>,
    },
    /// The image has another pixel format.
    #[error("expected pixels in {expected}, found {found}")]
    PixelFormat {
        /// The feature's format.
        expected: PixelFormat,
        /// The image's.
        found: PixelFormat,
    },
    /// The keys of the dictionary, or the elements of the sequence, are of another kind.
    #[error("expected {expected} as key or element, found {found}")]
    Key {
        /// The feature's kind of key.
        expected: KeyKind,
        /// The value's.
        found: KeyKind,
    },
    /// The sequence is too short or too long.
    #[error("expected {expected} elements, found {found}")]
    Count {
        /// How many there may be.
        expected: Range,
        /// How many there are.
        found: usize,
    },
}

/// The least and the most of something, both included; no most = no bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Range {
    /// The least.
    pub least: usize,
    /// The most, if there is a bound.
    pub most: Option<usize>,
}

impl Range {
    /// Exactly one number.
    #[must_use]
    pub const fn exactly(number: usize) -> Range {
        Range { least: number, most: Some(number) }
    }

    /// Whether the number lies within.
    #[must_use]
    pub fn contains(&self, number: usize) -> bool {
        number >= self.least && self.most.is_none_or(|most| number <= most)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.most {
            Some(most) if most == self.least => write!(f, "{most}"),
            Some(most) => write!(f, "{} to {most}", self.least),
            None => write!(f, "{} or more", self.least),
        }
    }
}

/// Which shapes a feature takes besides its default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Flexibility {
    /// None.
    #[default]
    Fixed,
    /// These.
    Enumerated(Vec<Vec<usize>>),
    /// All whose dimensions lie in these ranges.
    Ranges(Vec<Range>),
}

impl Flexibility {
    fn accepts(&self, default: &[usize], shape: &[usize]) -> bool {
        match self {
            Flexibility::Fixed => shape == default,
            Flexibility::Enumerated(shapes) => shape == default || shapes.iter().any(|known| known == shape),
            Flexibility::Ranges(ranges) => {
                ranges.len() == shape.len()
                    && ranges.iter().zip(shape).all(|(range, &dimension)| range.contains(dimension))
            }
        }
    }

    /// The shapes in words.
    fn shapes(&self, default: &[usize]) -> String {
        match self {
            Flexibility::Fixed => format!("{default:?}"),
            Flexibility::Enumerated(shapes) => {
                let mut all: Vec<String> = shapes.iter().map(|shape| format!("{shape:?}")).collect();
                if !shapes.iter().any(|shape| shape == default) {
                    all.insert(0, format!("{default:?}"));
                }
                all.join(" or ")
            }
            Flexibility::Ranges(ranges) => {
                let ranges: Vec<String> = ranges.iter().map(Range::to_string).collect();
                format!("[{}]", ranges.join(", "))
            }
        }
    }
}

/// Which tensors a feature takes.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TensorSpec {
    /// The element type.
    pub dtype: Dtype,
    /// The default shape. Empty and not flexible: the model does not say, and any shape will do.
    pub shape: Vec<usize>,
    /// Which other shapes will do.
    pub flexible: Flexibility,
    /// What an optional input holds when it is not given.
    pub default: Option<f64>,
}

impl TensorSpec {
    /// Whether the feature takes a tensor of this element type and shape.
    ///
    /// # Errors
    /// [`Mismatch::Dtype`] or [`Mismatch::Shape`].
    pub fn accepts(&self, dtype: Dtype, shape: &[usize]) -> Result<(), Mismatch> {
        if dtype != self.dtype {
            return Err(Mismatch::Dtype { expected: self.dtype, found: dtype });
        }
        let unsaid = self.shape.is_empty() && self.flexible == Flexibility::Fixed;
        if unsaid || self.flexible.accepts(&self.shape, shape) {
            return Ok(());
        }
        Err(Mismatch::Shape { expected: self.flexible.shapes(&self.shape), found: shape.to_vec() })
    }

    fn accepts_tensor(&self, tensor: &Tensor) -> Result<(), Mismatch> {
        self.accepts(tensor.dtype(), tensor.shape())
    }
}

impl fmt::Display for TensorSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.shape.is_empty() && self.flexible == Flexibility::Fixed {
            return write!(f, "{} of a shape that the model does not say", self.dtype);
        }
        write!(f, "{} {}", self.dtype, self.flexible.shapes(&self.shape))
    }
}

/// How an image's colours are laid out for the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Color {
    /// The model sees red first.
    Rgb,
    /// The model sees blue first.
    Bgr,
    /// Grey of 8 bits.
    Gray,
    /// Grey of half precision.
    GrayFloat16,
}

impl Color {
    /// The name in the description's JSON.
    ///
    /// ```
    /// assert_eq!(coreml_bridge::Color::GrayFloat16.name(), "gray_float16");
    /// ```
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Color::Rgb => "rgb",
            Color::Bgr => "bgr",
            Color::Gray => "gray",
            Color::GrayFloat16 => "gray_float16",
        }
    }

    /// The format that an image must have to be taken; the framework turns colours to the model's order.
    #[must_use]
    pub const fn pixel_format(self) -> PixelFormat {
        match self {
            Color::Rgb | Color::Bgr => PixelFormat::Bgra8,
            Color::Gray => PixelFormat::Gray8,
            Color::GrayFloat16 => PixelFormat::Gray16F,
        }
    }
}

/// Which images a feature takes.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ImageSpec {
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// How the colours are laid out.
    pub color: Color,
    /// Which other sizes, as `[height, width]`, will do.
    pub flexible: Flexibility,
}

impl ImageSpec {
    /// Whether the feature takes an image of this format and size.
    ///
    /// # Errors
    /// [`Mismatch::PixelFormat`], or [`Mismatch::Shape`] with `[height, width]`.
    pub fn accepts(&self, format: PixelFormat, width: u32, height: u32) -> Result<(), Mismatch> {
        let expected = self.color.pixel_format();
        if format != expected {
            return Err(Mismatch::PixelFormat { expected, found: format });
        }
        let (default, found) = (self.default_size(), [height as usize, width as usize]);
        if self.flexible.accepts(&default, &found) {
            return Ok(());
        }
        Err(Mismatch::Shape { expected: self.flexible.shapes(&default), found: found.to_vec() })
    }

    fn default_size(&self) -> [usize; 2] {
        [self.height as usize, self.width as usize]
    }
}

impl fmt::Display for ImageSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shapes = self.flexible.shapes(&self.default_size());
        write!(f, "{}, [height, width] = {shapes}", self.color.pixel_format())
    }
}

/// Which dictionaries a feature takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct DictionarySpec {
    /// What the keys are.
    pub key: KeyKind,
}

/// Which sequences a feature takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SequenceSpec {
    /// What the elements are.
    pub element: KeyKind,
    /// How many there may be.
    pub count: Range,
}

/// A feature as the JSON has it.
#[derive(Deserialize)]
struct FeatureForm {
    name: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    optional: bool,
    kind: Kind,
    tensor: Option<TensorForm>,
    image: Option<ImageForm>,
    dictionary: Option<DictionarySpec>,
    sequence: Option<SequenceForm>,
}

#[derive(Deserialize)]
struct TensorForm {
    dtype: Dtype,
    #[serde(default)]
    shape: Vec<usize>,
    flexible: Option<FlexibleForm>,
    default: Option<f64>,
}

#[derive(Deserialize)]
struct ImageForm {
    width: u32,
    height: u32,
    color: Color,
    flexible: Option<FlexibleForm>,
}

#[derive(Deserialize)]
struct SequenceForm {
    element: KeyKind,
    #[serde(default)]
    count: Vec<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum FlexibleForm {
    Enumerated(Vec<Vec<usize>>),
    Ranges(Vec<(usize, i64)>),
}

/// A member is wrong in a way that JSON types do not show.
#[derive(Debug, Error)]
enum FormError {
    #[error("the feature `{name}` is of kind {kind} but has no member of that name")]
    Member { name: String, kind: Kind },
    #[error("the count of the sequence `{name}` is {count:?}, not [least, most] or [least]")]
    Count { name: String, count: Vec<i64> },
}

/// A negative number means "no upper bound".
fn bound(most: i64) -> Option<usize> {
    usize::try_from(most).ok()
}

impl From<Option<FlexibleForm>> for Flexibility {
    fn from(form: Option<FlexibleForm>) -> Self {
        match form {
            None => Flexibility::Fixed,
            Some(FlexibleForm::Enumerated(shapes)) => Flexibility::Enumerated(shapes),
            Some(FlexibleForm::Ranges(ranges)) => Flexibility::Ranges(
                ranges.into_iter().map(|(least, most)| Range { least, most: bound(most) }).collect(),
            ),
        }
    }
}

impl TryFrom<FeatureForm> for Feature {
    type Error = FormError;

    fn try_from(form: FeatureForm) -> Result<Self, FormError> {
        let FeatureForm { name, description, optional, kind, tensor, image, dictionary, sequence } = form;
        let missing = || FormError::Member { name: name.clone(), kind };
        let kind = match kind {
            Kind::Int64 => FeatureKind::Int64,
            Kind::Double => FeatureKind::Double,
            Kind::String => FeatureKind::String,
            Kind::Image => {
                let ImageForm { width, height, color, flexible } = image.ok_or_else(missing)?;
                FeatureKind::Image(ImageSpec { width, height, color, flexible: flexible.into() })
            }
            Kind::Tensor => {
                let TensorForm { dtype, shape, flexible, default } = tensor.ok_or_else(missing)?;
                FeatureKind::Tensor(TensorSpec { dtype, shape, flexible: flexible.into(), default })
            }
            Kind::Dictionary => FeatureKind::Dictionary(dictionary.ok_or_else(missing)?),
            Kind::Sequence => {
                let SequenceForm { element, count } = sequence.ok_or_else(missing)?;
                let wrong = |count: &[i64]| FormError::Count { name: name.clone(), count: count.to_vec() };
                let (least, most) = match *count.as_slice() {
                    [] => (0, None),
                    [least] => (least, None),
                    [least, most] => (least, bound(most)),
                    _ => return Err(wrong(&count)),
                };
                let least = usize::try_from(least).map_err(|_| wrong(&count))?;
                FeatureKind::Sequence(SequenceSpec { element, count: Range { least, most } })
            }
        };
        Ok(Feature { name, description, optional, kind })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feature(json: &str) -> Feature {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn the_example_of_the_abi_document_is_read() {
        let json = r#"{
          "inputs": [{ "name": "image", "description": "", "optional": false, "kind": "tensor",
            "tensor": { "dtype": "float32", "shape": [1, 1, 8, 8], "flexible": { "enumerated": [[1, 1, 8, 8], [2, 1, 8, 8]] },
                        "default": 0.0 } }],
          "outputs": [], "states": [], "functions": ["main"], "function": "main",
          "predicted_feature": "classLabel", "predicted_probabilities": "classLabelProbs",
          "class_labels": ["cat", 7], "unknown": {},
          "metadata": { "author": "a", "user": { "key": "value" } } }"#;
        let description = ModelDescription::from_json(json.as_bytes()).unwrap();
        assert_eq!(description.class_labels, [ClassLabel::String("cat".into()), ClassLabel::Int64(7)]);
        assert_eq!(description.metadata.user["key"], "value");
        let spec = description.input("image").unwrap().kind.tensor().unwrap();
        assert_eq!(spec.default, Some(0.0));
        assert!(spec.accepts(Dtype::Float32, &[2, 1, 8, 8]).is_ok());
        assert_eq!(
            spec.accepts(Dtype::Float32, &[3, 1, 8, 8]).unwrap_err().to_string(),
            "expected shape [1, 1, 8, 8] or [2, 1, 8, 8], found [3, 1, 8, 8]"
        );
    }

    #[test]
    fn ranges_without_an_upper_bound_take_any_size() {
        let feature = feature(
            r#"{ "name": "x", "kind": "image", "image": { "width": 8, "height": 8, "color": "gray_float16",
                 "flexible": { "ranges": [[4, -1], [8, 8]] } } }"#,
        );
        let spec = feature.kind.image().unwrap();
        assert!(spec.accepts(PixelFormat::Gray16F, 8, 4000).is_ok());
        let error = spec.accepts(PixelFormat::Gray16F, 9, 4000).unwrap_err();
        assert_eq!(error.to_string(), "expected shape [4 or more, 8], found [4000, 9]");
        assert!(matches!(spec.accepts(PixelFormat::Bgra8, 8, 8), Err(Mismatch::PixelFormat { .. })));
    }

    #[test]
    fn a_tensor_of_unsaid_shape_takes_any() {
        let feature = feature(r#"{ "name": "x", "kind": "tensor", "tensor": { "dtype": "int32" } }"#);
        assert!(feature.kind.tensor().unwrap().accepts(Dtype::Int32, &[3, 0, 5]).is_ok());
    }

    #[test]
    fn sequences_are_counted() {
        let feature = feature(
            r#"{ "name": "x", "kind": "sequence", "sequence": { "element": "string", "count": [1, 2] } }"#,
        );
        let words = |n: usize| Value::Sequence((0..n).map(|i| i.to_string()).collect());
        assert!(feature.kind.accepts(&words(2)).is_ok());
        for n in [0, 3] {
            let expected = Range { least: 1, most: Some(2) };
            assert_eq!(feature.kind.accepts(&words(n)), Err(Mismatch::Count { expected, found: n }));
        }
        let numbers = Value::Sequence([1_i64].into_iter().collect());
        assert!(matches!(feature.kind.accepts(&numbers), Err(Mismatch::Key { .. })));
    }

    #[test]
    fn a_feature_without_the_member_of_its_kind_is_refused_by_name() {
        let error = serde_json::from_str::<Feature>(r#"{ "name": "x", "kind": "tensor" }"#).unwrap_err();
        assert!(error.to_string().contains("`x` is of kind tensor"), "{error}");
    }
}
