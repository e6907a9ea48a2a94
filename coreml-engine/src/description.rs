//! What a model takes and gives: features, their types and constraints, metadata.
//!
//! Serialises to the JSON of `docs/abi.md`.

use std::collections::BTreeMap;

use coreml_proto::proto as spec;
use serde::Serialize;

/// A model's inputs, outputs, states and metadata.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ModelDescription {
    /// What a prediction takes.
    pub inputs: Vec<Feature>,
    /// What it gives.
    pub outputs: Vec<Feature>,
    /// What it keeps between predictions.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub states: Vec<Feature>,
    /// All functions of the model.
    pub functions: Vec<String>,
    /// The function that this description is of.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub function: String,
    /// Of a classifier: the output that holds the label.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub predicted_feature: String,
    /// Of a classifier: the output that holds the probabilities.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub predicted_probabilities: String,
    /// Of a classifier: the labels, in the order of the model's output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class_labels: Option<Labels>,
    /// Who made it, and so on.
    pub metadata: Metadata,
}

impl ModelDescription {
    /// With one shape for each input, and no others: the default one where none is given.
    pub(crate) fn fixed(&self, shapes: &[Option<Vec<usize>>]) -> Self {
        let mut fixed = self.clone();
        for (i, input) in fixed.inputs.iter_mut().enumerate() {
            input.kind.fix(shapes.get(i).and_then(Option::as_deref));
        }
        fixed
    }
}

/// Class labels of either kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Labels {
    /// Text.
    Strings(Vec<String>),
    /// Numbers.
    Ints(Vec<i64>),
}

impl Labels {
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Strings(labels) => labels.len(),
            Self::Ints(labels) => labels.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Words about a model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "the names say it all")]
pub struct Metadata {
    pub author: String,
    pub license: String,
    pub version: String,
    pub description: String,
    pub user: BTreeMap<String, String>,
}

/// One input, output or state.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Feature {
    /// Its name, unique among the inputs, the outputs or the states.
    pub name: String,
    /// The author's words.
    pub description: String,
    /// Whether a prediction may leave it out.
    pub optional: bool,
    /// Its type.
    #[serde(flatten)]
    pub kind: FeatureKind,
}

/// Type of a feature.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum FeatureKind {
    /// An integer.
    Int64,
    /// A number.
    Double,
    /// Text.
    String,
    /// A picture.
    Image {
        /// Its constraints.
        image: ImageSpec,
    },
    /// A multi-array.
    Tensor {
        /// Its constraints.
        tensor: TensorSpec,
    },
    /// Keys to numbers.
    Dictionary {
        /// Its key type.
        dictionary: DictionarySpec,
    },
    /// A list of keys.
    Sequence {
        /// Its element type and length.
        sequence: SequenceSpec,
    },
}

/// Element type of a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names say it all")]
pub enum ArrayDtype {
    Float16,
    Float32,
    Float64,
    Int8,
    Int32,
}

impl ArrayDtype {
    /// Bytes of one element.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::Int8 => 1,
            Self::Float16 => 2,
            Self::Float32 | Self::Int32 => 4,
            Self::Float64 => 8,
        }
    }

    fn from_proto(number: i32) -> Option<Self> {
        use spec::array_feature_type::ArrayDataType as P;
        Some(match P::try_from(number).ok()? {
            P::Float16 => Self::Float16,
            P::Float32 => Self::Float32,
            P::Double => Self::Float64,
            P::Int32 => Self::Int32,
            P::Int8 => Self::Int8,
            P::InvalidArrayDataType => return None,
        })
    }
}

/// Constraints of a multi-array.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorSpec {
    /// Element type.
    pub dtype: ArrayDtype,
    /// The default shape.
    pub shape: Vec<usize>,
    /// Other shapes that are allowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flexible: Option<Flexible>,
    /// What an optional input is filled with if it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<f64>,
}

/// Allowed shapes beside the default one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Flexible {
    /// Exactly these.
    Enumerated(Vec<Vec<usize>>),
    /// Per dimension least and most; `-1` is no upper bound.
    Ranges(Vec<(i64, i64)>),
}

impl Flexible {
    fn admits(&self, shape: &[usize]) -> bool {
        match self {
            Self::Enumerated(shapes) => shapes.iter().any(|s| s == shape),
            Self::Ranges(ranges) => {
                ranges.len() == shape.len()
                    && ranges.iter().zip(shape).all(|(&(least, most), &size)| {
                        i64::try_from(size).is_ok_and(|size| size >= least && (most < 0 || size <= most))
                    })
            }
        }
    }
}

impl TensorSpec {
    /// Whether a tensor of `shape` may be given.
    #[must_use]
    pub fn admits(&self, shape: &[usize]) -> bool {
        self.shape == shape || self.flexible.as_ref().is_some_and(|f| f.admits(shape))
    }
}

/// Colours of an image feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names say it all")]
pub enum Color {
    Rgb,
    Bgr,
    Gray,
    GrayFloat16,
}

impl Color {
    /// The name in the description's JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Rgb => "rgb",
            Self::Bgr => "bgr",
            Self::Gray => "gray",
            Self::GrayFloat16 => "gray_float16",
        }
    }
}

/// Constraints of an image; the dimensions of `flexible` are `[height, width]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ImageSpec {
    /// Default width in pixels.
    pub width: usize,
    /// Default height in pixels.
    pub height: usize,
    /// Its colours.
    pub color: Color,
    /// Other sizes that are allowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flexible: Option<Flexible>,
}

impl ImageSpec {
    /// Whether an image of that size may be given.
    #[must_use]
    pub fn admits(&self, height: usize, width: usize) -> bool {
        (self.height, self.width) == (height, width)
            || self.flexible.as_ref().is_some_and(|f| f.admits(&[height, width]))
    }

    /// The sizes that are allowed, width first: `3x2`, `one of 3x2, 5x4`, `3 to 6 x 2 to 4`.
    fn sizes(&self) -> String {
        let range = |&(least, most): &(i64, i64)| match most {
            _ if least == most => least.to_string(),
            ..0 => format!("{least} or more"),
            _ => format!("{least} to {most}"),
        };
        match &self.flexible {
            Some(Flexible::Enumerated(sizes)) => {
                let default = vec![self.height, self.width];
                let mut sizes: Vec<_> = sizes.iter().collect();
                if !sizes.contains(&&default) {
                    sizes.insert(0, &default);
                }
                let size = |size: &&Vec<usize>| {
                    size.iter().rev().map(ToString::to_string).collect::<Vec<_>>().join("x")
                };
                format!("one of {}", sizes.iter().map(size).collect::<Vec<_>>().join(", "))
            }
            Some(Flexible::Ranges(ranges)) => ranges.iter().rev().map(range).collect::<Vec<_>>().join(" x "),
            None => format!("{}x{}", self.width, self.height),
        }
    }
}

/// Type of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names say it all")]
pub enum KeyType {
    Int64,
    String,
}

/// Constraints of a dictionary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DictionarySpec {
    /// Type of its keys; the values are doubles.
    pub key: KeyType,
}

/// Constraints of a sequence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SequenceSpec {
    /// Type of its elements.
    pub element: KeyType,
    /// Least and, if there is one, most elements.
    pub count: Vec<u64>,
}

impl SequenceSpec {
    /// Whether a sequence of that many elements may be given.
    #[must_use]
    pub fn admits(&self, count: usize) -> bool {
        let count = count as u64;
        self.count.first().is_none_or(|&least| least <= count)
            && self.count.get(1).is_none_or(|&most| count <= most)
    }
}

impl FeatureKind {
    /// Whether there is more than one shape.
    pub(crate) fn is_flexible(&self) -> bool {
        match self {
            Self::Tensor { tensor } => tensor.flexible.is_some(),
            Self::Image { image } => image.flexible.is_some(),
            Self::Int64 | Self::Double | Self::String | Self::Dictionary { .. } | Self::Sequence { .. } => {
                false
            }
        }
    }

    /// Whether that shape (of an image its height and width) may be given.
    pub(crate) fn admits(&self, shape: &[usize]) -> bool {
        match (self, shape) {
            (Self::Tensor { tensor }, shape) => tensor.admits(shape),
            (Self::Image { image }, &[height, width]) => image.admits(height, width),
            _ => false,
        }
    }

    /// Leaves that shape, or the default one, and no other.
    fn fix(&mut self, shape: Option<&[usize]>) {
        match self {
            Self::Tensor { tensor } => {
                tensor.flexible = None;
                if let Some(shape) = shape {
                    tensor.shape = shape.to_vec();
                }
            }
            Self::Image { image } => {
                image.flexible = None;
                if let Some(&[height, width]) = shape {
                    (image.height, image.width) = (height, width);
                }
            }
            Self::Int64 | Self::Double | Self::String | Self::Dictionary { .. } | Self::Sequence { .. } => {}
        }
    }

    /// As words, for error texts: `tensor float32 [1, 3]`, `image rgb 224x224 (width x height)`.
    #[must_use]
    pub fn words(&self) -> String {
        match self {
            Self::Int64 => "int64".into(),
            Self::Double => "double".into(),
            Self::String => "string".into(),
            Self::Image { image } => {
                format!("image {} {} (width x height)", image.color.name(), image.sizes())
            }
            Self::Tensor { tensor } => {
                let shape = match &tensor.flexible {
                    None => format!("{:?}", tensor.shape),
                    Some(Flexible::Enumerated(shapes)) => format!("one of {shapes:?}"),
                    Some(Flexible::Ranges(ranges)) => format!("{:?} within {ranges:?}", tensor.shape),
                };
                format!("tensor {:?} {shape}", tensor.dtype).to_lowercase()
            }
            Self::Dictionary { dictionary } => format!("dictionary of {:?}", dictionary.key).to_lowercase(),
            Self::Sequence { sequence } => format!("sequence of {:?}", sequence.element).to_lowercase(),
        }
    }
}

/// Reads the description of `function` (or of the whole model). Errors are `(where, why)`.
pub(crate) fn decode(
    description: &spec::ModelDescription,
    function: Option<&str>,
) -> Result<ModelDescription, (String, String)> {
    let metadata = description.metadata.clone().unwrap_or_default();
    let mut out = ModelDescription {
        metadata: Metadata {
            author: metadata.author,
            license: metadata.license,
            version: metadata.version_string,
            description: metadata.short_description,
            user: metadata.user_defined.into_iter().collect(),
        },
        functions: description.functions.iter().map(|f| f.name.clone()).collect(),
        ..ModelDescription::default()
    };
    let (input, output, state) = match function {
        Some(name) => {
            let function = description
                .functions
                .iter()
                .find(|f| f.name == name)
                .ok_or_else(|| ("description".into(), format!("no function `{name}`")))?;
            out.predicted_feature = function.predicted_feature_name.clone();
            out.predicted_probabilities = function.predicted_probabilities_name.clone();
            out.function = name.into();
            (&function.input, &function.output, &function.state)
        }
        None => {
            out.predicted_feature = description.predicted_feature_name.clone();
            out.predicted_probabilities = description.predicted_probabilities_name.clone();
            (&description.input, &description.output, &description.state)
        }
    };
    let features = |list: &[spec::FeatureDescription], what: &str| {
        list.iter()
            .map(|f| feature(f).map_err(|why| (format!("{what} `{}`", f.name), why)))
            .collect::<Result<Vec<_>, _>>()
    };
    out.inputs = features(input, "input")?;
    out.outputs = features(output, "output")?;
    out.states = features(state, "state")?;
    for (list, what) in [(&out.inputs, "input"), (&out.outputs, "output"), (&out.states, "state")] {
        let mut names = std::collections::HashSet::new();
        if let Some(twice) = list.iter().find(|f| !names.insert(&f.name)) {
            return Err((format!("{what} `{}`", twice.name), "declared twice".into()));
        }
    }
    Ok(out)
}

fn feature(f: &spec::FeatureDescription) -> Result<Feature, String> {
    use spec::feature_type::Type as T;
    let ty = f.r#type.as_ref().ok_or("it has no type")?;
    let kind = match ty.r#type.as_ref().ok_or("it has no type")? {
        T::Int64Type(_) => FeatureKind::Int64,
        T::DoubleType(_) => FeatureKind::Double,
        T::StringType(_) => FeatureKind::String,
        T::ImageType(image) => FeatureKind::Image { image: image_spec(image)? },
        T::MultiArrayType(array) => FeatureKind::Tensor { tensor: tensor_spec(array)? },
        T::StateType(state) => match &state.r#type {
            Some(spec::state_feature_type::Type::ArrayType(array)) => {
                FeatureKind::Tensor { tensor: tensor_spec(array)? }
            }
            None => return Err("a state without a type".into()),
        },
        T::DictionaryType(d) => {
            use spec::dictionary_feature_type::KeyType as K;
            let key = match d.key_type {
                Some(K::Int64KeyType(_)) => KeyType::Int64,
                Some(K::StringKeyType(_)) => KeyType::String,
                None => return Err("a dictionary without a key type".into()),
            };
            FeatureKind::Dictionary { dictionary: DictionarySpec { key } }
        }
        T::SequenceType(s) => {
            use spec::sequence_feature_type::Type as S;
            let element = match s.r#type {
                Some(S::Int64Type(_)) => KeyType::Int64,
                Some(S::StringType(_)) => KeyType::String,
                None => return Err("a sequence without an element type".into()),
            };
            let range = s.size_range.unwrap_or(spec::SizeRange { lower_bound: 0, upper_bound: -1 });
            let mut count = vec![range.lower_bound];
            count.extend(u64::try_from(range.upper_bound).ok());
            FeatureKind::Sequence { sequence: SequenceSpec { element, count } }
        }
    };
    Ok(Feature {
        name: f.name.clone(),
        description: f.short_description.clone(),
        optional: ty.is_optional,
        kind,
    })
}

fn sizes(shape: &[i64]) -> Result<Vec<usize>, String> {
    shape
        .iter()
        .map(|&n| usize::try_from(n).map_err(|_| format!("the shape {shape:?} has a negative dimension")))
        .collect()
}

fn range(r: &spec::SizeRange) -> (i64, i64) {
    (i64::try_from(r.lower_bound).unwrap_or(i64::MAX), r.upper_bound)
}

fn tensor_spec(array: &spec::ArrayFeatureType) -> Result<TensorSpec, String> {
    use spec::array_feature_type::{DefaultOptionalValue as D, ShapeFlexibility as S};
    let dtype = ArrayDtype::from_proto(array.data_type)
        .ok_or_else(|| format!("unknown element type {}", array.data_type))?;
    let flexible = match &array.shape_flexibility {
        None => None,
        Some(S::EnumeratedShapes(e)) => {
            Some(Flexible::Enumerated(e.shapes.iter().map(|s| sizes(&s.shape)).collect::<Result<_, _>>()?))
        }
        Some(S::ShapeRange(r)) => Some(Flexible::Ranges(r.size_ranges.iter().map(range).collect())),
    };
    let default = array.default_optional_value.as_ref().map(|d| match *d {
        D::IntDefaultValue(x) => f64::from(x),
        D::FloatDefaultValue(x) => f64::from(x),
        D::DoubleDefaultValue(x) => x,
    });
    Ok(TensorSpec { dtype, shape: sizes(&array.shape)?, flexible, default })
}

fn image_spec(image: &spec::ImageFeatureType) -> Result<ImageSpec, String> {
    use spec::image_feature_type::{ColorSpace as C, SizeFlexibility as S};
    let color = match C::try_from(image.color_space) {
        Ok(C::Rgb) => Color::Rgb,
        Ok(C::Bgr) => Color::Bgr,
        Ok(C::Grayscale) => Color::Gray,
        Ok(C::GrayscaleFloat16) => Color::GrayFloat16,
        Ok(C::InvalidColorSpace) | Err(_) => {
            return Err(format!("unknown colour space {}", image.color_space));
        }
    };
    let flexible = match &image.size_flexibility {
        None => None,
        Some(S::EnumeratedSizes(e)) => Some(Flexible::Enumerated(
            e.sizes
                .iter()
                .map(|s| {
                    sizes(&[i64::try_from(s.height).unwrap_or(-1), i64::try_from(s.width).unwrap_or(-1)])
                })
                .collect::<Result<_, _>>()?,
        )),
        Some(S::ImageSizeRange(r)) => Some(Flexible::Ranges(vec![
            r.height_range.as_ref().map_or((1, -1), range),
            r.width_range.as_ref().map_or((1, -1), range),
        ])),
    };
    let size = sizes(&[image.height, image.width])?;
    Ok(ImageSpec { height: size[0], width: size[1], color, flexible })
}
