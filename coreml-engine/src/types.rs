//! Element types and shapes as a Core ML program states them.

use std::fmt;

use coreml_proto::proto::mil_spec;

/// Element type of a tensor in a program.
///
/// At run time every floating type is computed in `f32` and every integer and boolean type in `i32`
/// ([`DType::is_float`] tells which); the declared type decides rounding, wrap-around and what leaves the model.
/// See `docs/numerics.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DType {
    /// Half precision; computed in `f32`, rounded by `cast` and at outputs.
    F16,
    /// Single precision.
    F32,
    /// Double precision; computed in `f32`, as Core ML does.
    F64,
    /// Boolean; `i32` 0 or 1 at run time.
    Bool,
    /// Signed 4-bit integer (weights only).
    I4,
    /// Signed 8-bit integer.
    I8,
    /// Signed 16-bit integer.
    I16,
    /// Signed 32-bit integer.
    I32,
    /// Signed 64-bit integer; values must fit `i32`.
    I64,
    /// Unsigned 1-bit integer (weights only).
    U1,
    /// Unsigned 2-bit integer (weights only).
    U2,
    /// Unsigned 3-bit integer (weights only).
    U3,
    /// Unsigned 4-bit integer (weights only).
    U4,
    /// Unsigned 6-bit integer (weights only).
    U6,
    /// Unsigned 8-bit integer.
    U8,
    /// Unsigned 16-bit integer.
    U16,
    /// Unsigned 32-bit integer; values must fit `i32`.
    U32,
    /// Text; only as a constant parameter.
    String,
}

impl DType {
    /// Whether values are computed in `f32` (else in `i32`).
    #[must_use]
    pub fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::F32 | Self::F64)
    }

    /// Bits of one element as stored in a weight file; `None` for text.
    #[must_use]
    pub fn bits(self) -> Option<usize> {
        Some(match self {
            Self::U1 => 1,
            Self::U2 => 2,
            Self::U3 => 3,
            Self::I4 | Self::U4 => 4,
            Self::U6 => 6,
            Self::Bool | Self::I8 | Self::U8 => 8,
            Self::F16 | Self::I16 | Self::U16 => 16,
            Self::F32 | Self::I32 | Self::U32 => 32,
            Self::F64 | Self::I64 => 64,
            Self::String => return None,
        })
    }

    /// The type of that number in a MIL program.
    pub(crate) fn from_proto(number: i32) -> Option<Self> {
        use mil_spec::DataType as P;
        Some(match P::try_from(number).ok()? {
            P::Bool => Self::Bool,
            P::String => Self::String,
            P::Float16 => Self::F16,
            P::Float32 => Self::F32,
            P::Float64 => Self::F64,
            P::Int4 => Self::I4,
            P::Int8 => Self::I8,
            P::Int16 => Self::I16,
            P::Int32 => Self::I32,
            P::Int64 => Self::I64,
            P::Uint1 => Self::U1,
            P::Uint2 => Self::U2,
            P::Uint3 => Self::U3,
            P::Uint4 => Self::U4,
            P::Uint6 => Self::U6,
            P::Uint8 => Self::U8,
            P::Uint16 => Self::U16,
            P::Uint32 => Self::U32,
            P::UnusedType | P::Uint64 | P::Bfloat16 | P::Float8e4m3fn | P::Float8e5m2 => return None,
        })
    }

    /// The name that MIL text and `cast` use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "fp16",
            Self::F32 => "fp32",
            Self::F64 => "fp64",
            Self::Bool => "bool",
            Self::I4 => "int4",
            Self::I8 => "int8",
            Self::I16 => "int16",
            Self::I32 => "int32",
            Self::I64 => "int64",
            Self::U1 => "uint1",
            Self::U2 => "uint2",
            Self::U3 => "uint3",
            Self::U4 => "uint4",
            Self::U6 => "uint6",
            Self::U8 => "uint8",
            Self::U16 => "uint16",
            Self::U32 => "uint32",
            Self::String => "string",
        }
    }

    /// The inverse of [`DType::name`], for the parameters of `cast` and its like.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "fp16" | "float16" => Self::F16,
            "fp32" | "float32" | "float" => Self::F32,
            "fp64" | "float64" | "double" => Self::F64,
            "bool" => Self::Bool,
            "int4" => Self::I4,
            "int8" => Self::I8,
            "int16" => Self::I16,
            "int32" | "int" => Self::I32,
            "int64" => Self::I64,
            "uint1" => Self::U1,
            "uint2" => Self::U2,
            "uint3" => Self::U3,
            "uint4" => Self::U4,
            "uint6" => Self::U6,
            "uint8" => Self::U8,
            "uint16" => Self::U16,
            "uint32" => Self::U32,
            "string" => Self::String,
            _ => return None,
        })
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Element type and what is known of the shape before a prediction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorType {
    /// Element type.
    pub dtype: DType,
    /// `None`: rank unknown; `Some([.., None, ..])`: that dimension is unknown.
    pub shape: Option<Vec<Option<usize>>>,
}

impl TensorType {
    /// A type whose shape is fully known.
    #[must_use]
    pub fn fixed(dtype: DType, shape: &[usize]) -> Self {
        Self { dtype, shape: Some(shape.iter().copied().map(Some).collect()) }
    }

    /// A type of which only the rank is known.
    #[must_use]
    pub fn of_rank(dtype: DType, rank: usize) -> Self {
        Self { dtype, shape: Some(vec![None; rank]) }
    }

    /// The rank, if known.
    #[must_use]
    pub fn rank(&self) -> Option<usize> {
        self.shape.as_ref().map(Vec::len)
    }

    /// The shape, if all of it is known.
    #[must_use]
    pub fn fixed_shape(&self) -> Option<Vec<usize>> {
        self.shape.as_ref()?.iter().copied().collect()
    }

    /// Whether a tensor of `shape` is one of this type, as far as the type knows.
    #[must_use]
    pub fn admits(&self, shape: &[usize]) -> bool {
        self.shape.as_ref().is_none_or(|dims| {
            dims.len() == shape.len()
                && dims.iter().zip(shape).all(|(dim, &size)| dim.is_none_or(|dim| dim == size))
        })
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.dtype)?;
        let Some(dims) = &self.shape else { return f.write_str("[..]") };
        f.write_str("[")?;
        for (i, dim) in dims.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            match dim {
                Some(size) => write!(f, "{size}")?,
                None => f.write_str("?")?,
            }
        }
        f.write_str("]")
    }
}

/// The product of the dimensions, or `None` where it does not fit a `usize`.
pub(crate) fn element_count(shape: &[usize]) -> Option<usize> {
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(1_usize, |n, &dim| n.checked_mul(dim))
}
