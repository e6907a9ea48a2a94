//! What crosses the engine's border: borrowed inputs, owned outputs.

use half::f16;

use crate::description::ArrayDtype;

/// A multi-array of the caller, borrowed for one prediction.
#[derive(Clone, Copy, Debug)]
pub struct ArrayRef<'a> {
    /// Element type.
    pub dtype: ArrayDtype,
    /// Dimensions, outermost first.
    pub shape: &'a [usize],
    /// Distance between neighbours along each dimension, in elements; `None` is row-major and dense.
    pub strides: Option<&'a [usize]>,
    /// From the first element to the end of the last, in native byte order.
    pub bytes: &'a [u8],
}

/// How the pixels of an image lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PixelFormat {
    /// Blue, green, red, alpha; one byte each. Alpha is ignored.
    Bgra8,
    /// One byte.
    Gray8,
    /// One half.
    Gray16F,
}

impl PixelFormat {
    /// Bytes of one pixel.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::Bgra8 => 4,
            Self::Gray8 => 1,
            Self::Gray16F => 2,
        }
    }
}

/// An image of the caller, borrowed for one prediction.
#[derive(Clone, Copy, Debug)]
pub struct ImageRef<'a> {
    /// How the pixels lie.
    pub format: PixelFormat,
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Bytes from one row to the next.
    pub row_bytes: usize,
    /// All rows.
    pub pixels: &'a [u8],
}

/// One input of a prediction.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Input<'a> {
    /// A multi-array.
    Array(ArrayRef<'a>),
    /// An image.
    Image(ImageRef<'a>),
    /// An integer.
    Int64(i64),
    /// A number.
    Double(f64),
    /// Text.
    String(&'a str),
    /// Numbers by key; of equal keys the last counts.
    Dictionary(&'a [(Key, f64)]),
    /// A list of keys.
    Sequence(&'a [Key]),
}

impl Input<'_> {
    pub(crate) fn words(&self) -> String {
        match self {
            Self::Array(a) => format!("tensor {:?} {:?}", a.dtype, a.shape).to_lowercase(),
            Self::Image(i) => format!("image {:?} {}x{}", i.format, i.width, i.height),
            Self::Int64(_) => "int64".into(),
            Self::Double(_) => "double".into(),
            Self::String(_) => "string".into(),
            Self::Dictionary(entries) => words_of("dictionary", entries.first().map(|(key, _)| key)),
            Self::Sequence(keys) => words_of("sequence", keys.first()),
        }
    }
}

fn words_of(what: &str, key: Option<&Key>) -> String {
    match key {
        None => format!("empty {what}"),
        Some(Key::Int64(_)) => format!("{what} of int64"),
        Some(Key::String(_)) => format!("{what} of string"),
    }
}

/// The elements of an output.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the names say it all")]
pub enum Elements {
    Float16(Vec<f16>),
    Float32(Vec<f32>),
    Float64(Vec<f64>),
    Int8(Vec<i8>),
    Int32(Vec<i32>),
}

impl Elements {
    /// Their type.
    #[must_use]
    pub fn dtype(&self) -> ArrayDtype {
        match self {
            Self::Float16(_) => ArrayDtype::Float16,
            Self::Float32(_) => ArrayDtype::Float32,
            Self::Float64(_) => ArrayDtype::Float64,
            Self::Int8(_) => ArrayDtype::Int8,
            Self::Int32(_) => ArrayDtype::Int32,
        }
    }

    /// Their bytes, in native order.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Float16(v) => bytemuck::cast_slice(v),
            Self::Float32(v) => bytemuck::cast_slice(v),
            Self::Float64(v) => bytemuck::cast_slice(v),
            Self::Int8(v) => bytemuck::cast_slice(v),
            Self::Int32(v) => bytemuck::cast_slice(v),
        }
    }

    /// Their bytes, in native order, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Float16(v) => bytemuck::cast_slice_mut(v),
            Self::Float32(v) => bytemuck::cast_slice_mut(v),
            Self::Float64(v) => bytemuck::cast_slice_mut(v),
            Self::Int8(v) => bytemuck::cast_slice_mut(v),
            Self::Int32(v) => bytemuck::cast_slice_mut(v),
        }
    }

    /// That many zeros.
    #[must_use]
    pub fn zeros(dtype: ArrayDtype, count: usize) -> Self {
        match dtype {
            ArrayDtype::Float16 => Self::Float16(vec![f16::ZERO; count]),
            ArrayDtype::Float32 => Self::Float32(vec![0.0; count]),
            ArrayDtype::Float64 => Self::Float64(vec![0.0; count]),
            ArrayDtype::Int8 => Self::Int8(vec![0; count]),
            ArrayDtype::Int32 => Self::Int32(vec![0; count]),
        }
    }
}

/// A multi-array that a prediction made: row-major and dense.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// As many as the shape says.
    pub elements: Elements,
}

/// A key of a dictionary or a class label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the names say it all")]
pub enum Key {
    Int64(i64),
    String(String),
}

/// One output of a prediction.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Output {
    /// A multi-array.
    Array(Array),
    /// An image: rows without gaps.
    Image {
        /// How the pixels lie.
        format: PixelFormat,
        /// Pixels in a row.
        width: usize,
        /// Rows.
        height: usize,
        /// All rows.
        pixels: Vec<u8>,
    },
    /// A class label or another scalar.
    Key(Key),
    /// A number.
    Double(f64),
    /// Probabilities by label.
    Dictionary(Vec<(Key, f64)>),
    /// A list of keys.
    Sequence(Vec<Key>),
}

impl Output {
    /// The same as an input, for a model that takes what another made.
    ///
    /// ```
    /// use coreml_engine::{Input, Key, Output};
    /// let label = Output::Key(Key::String("cat".into()));
    /// assert!(matches!(label.as_input(), Input::String("cat")));
    /// ```
    #[must_use]
    pub fn as_input(&self) -> Input<'_> {
        match self {
            Self::Array(array) => Input::Array(ArrayRef {
                dtype: array.elements.dtype(),
                shape: &array.shape,
                strides: None,
                bytes: array.elements.bytes(),
            }),
            Self::Image { format, width, height, pixels } => Input::Image(ImageRef {
                format: *format,
                width: *width,
                height: *height,
                row_bytes: width * format.size(),
                pixels,
            }),
            Self::Key(Key::Int64(x)) => Input::Int64(*x),
            Self::Key(Key::String(text)) => Input::String(text),
            Self::Double(x) => Input::Double(*x),
            Self::Dictionary(entries) => Input::Dictionary(entries),
            Self::Sequence(keys) => Input::Sequence(keys),
        }
    }
}
