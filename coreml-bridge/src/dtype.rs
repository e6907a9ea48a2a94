//! Element types of tensors.

use core::fmt;

use coreml_sys::{
    CML_DTYPE_FLOAT16, CML_DTYPE_FLOAT32, CML_DTYPE_FLOAT64, CML_DTYPE_INT8, CML_DTYPE_INT32, CmlDtype,
};
use half::f16;
use serde::{Deserialize, Serialize};

use crate::tensor::Storage;

/// The element type of a tensor: those that Core ML's multi-arrays have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// IEEE 754 binary16, [`half::f16`] in Rust.
    Float16,
    /// IEEE 754 binary32.
    Float32,
    /// IEEE 754 binary64.
    Float64,
    /// Two's complement, 8 bits. Core ML knows it since macOS 26.
    Int8,
    /// Two's complement, 32 bits.
    Int32,
}

impl Dtype {
    /// Every element type, in the order of the declaration.
    pub const ALL: [Dtype; 5] = [Dtype::Float16, Dtype::Float32, Dtype::Float64, Dtype::Int8, Dtype::Int32];

    /// Bytes of one element.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Dtype::Int8 => 1,
            Dtype::Float16 => 2,
            Dtype::Float32 | Dtype::Int32 => 4,
            Dtype::Float64 => 8,
        }
    }

    /// The name that model descriptions use, for example `float32`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Dtype::Float16 => "float16",
            Dtype::Float32 => "float32",
            Dtype::Float64 => "float64",
            Dtype::Int8 => "int8",
            Dtype::Int32 => "int32",
        }
    }

    /// Whether the elements are floating-point numbers.
    #[must_use]
    pub const fn is_float(self) -> bool {
        matches!(self, Dtype::Float16 | Dtype::Float32 | Dtype::Float64)
    }

    /// The number that stands for this type in the table, which is `MLMultiArrayDataType`'s.
    #[must_use]
    pub const fn to_native(self) -> CmlDtype {
        match self {
            Dtype::Float16 => CML_DTYPE_FLOAT16,
            Dtype::Float32 => CML_DTYPE_FLOAT32,
            Dtype::Float64 => CML_DTYPE_FLOAT64,
            Dtype::Int8 => CML_DTYPE_INT8,
            Dtype::Int32 => CML_DTYPE_INT32,
        }
    }

    /// The type that a number of the table stands for, if it is known.
    #[must_use]
    pub const fn from_native(number: CmlDtype) -> Option<Dtype> {
        match number {
            CML_DTYPE_FLOAT16 => Some(Dtype::Float16),
            CML_DTYPE_FLOAT32 => Some(Dtype::Float32),
            CML_DTYPE_FLOAT64 => Some(Dtype::Float64),
            CML_DTYPE_INT8 => Some(Dtype::Int8),
            CML_DTYPE_INT32 => Some(Dtype::Int32),
            _ => None,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A Rust type that can be an element of a [`Tensor`](crate::Tensor): [`half::f16`], `f32`, `f64`, `i8`, `i32`.
///
/// The trait is sealed: the list is the table's.
pub trait Element:
    sealed::Sealed + bytemuck::Pod + Copy + PartialEq + PartialOrd + fmt::Debug + Send + Sync + 'static
{
    /// The element type that this Rust type is.
    const DTYPE: Dtype;
}

pub(crate) mod sealed {
    use super::Storage;

    /// How an element type is kept. A `f64` holds every element type exactly, so that conversions go through it.
    pub trait Sealed: Sized {
        fn into_storage(elements: Vec<Self>) -> Storage;
        fn elements(storage: &Storage) -> Option<&[Self]>;
        fn elements_mut(storage: &mut Storage) -> Option<&mut [Self]>;
        fn to_f64(self) -> f64;
        fn from_f64(number: f64) -> Self;
    }
}

macro_rules! element {
    ($type:ty, $dtype:ident, $to_f64:expr, $from_f64:expr) => {
        impl Element for $type {
            const DTYPE: Dtype = Dtype::$dtype;
        }

        impl sealed::Sealed for $type {
            fn into_storage(elements: Vec<Self>) -> Storage {
                Storage::$dtype(elements)
            }

            fn elements(storage: &Storage) -> Option<&[Self]> {
                match storage {
                    Storage::$dtype(elements) => Some(elements),
                    _ => None,
                }
            }

            fn elements_mut(storage: &mut Storage) -> Option<&mut [Self]> {
                match storage {
                    Storage::$dtype(elements) => Some(elements),
                    _ => None,
                }
            }

            fn to_f64(self) -> f64 {
                $to_f64(self)
            }

            fn from_f64(number: f64) -> Self {
                $from_f64(number)
            }
        }
    };
}

element!(f16, Float16, f16::to_f64, f16::from_f64);
element!(f32, Float32, f64::from, |number| number as f32);
element!(f64, Float64, |number| number, |number| number);
element!(i8, Int8, f64::from, |number| number as i8);
element!(i32, Int32, f64::from, |number| number as i32);

/// Runs `$body` with `$T` standing for the Rust type of `$dtype`.
macro_rules! with_element {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::Dtype::Float16 => {
                type $T = half::f16;
                $body
            }
            $crate::Dtype::Float32 => {
                type $T = f32;
                $body
            }
            $crate::Dtype::Float64 => {
                type $T = f64;
                $body
            }
            $crate::Dtype::Int8 => {
                type $T = i8;
                $body
            }
            $crate::Dtype::Int32 => {
                type $T = i32;
                $body
            }
        }
    };
}
pub(crate) use with_element;
