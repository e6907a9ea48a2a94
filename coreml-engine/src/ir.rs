//! The typed program that everything above the decoders works on. No protobuf type appears here or above.
//!
//! A [`Function`] is in SSA form and well scoped by construction: the decoders resolve every name to a [`ValueId`]
//! that is defined before it is used.

use std::sync::Arc;

use half::f16;
use half::slice::HalfFloatSliceExt;
use rten_tensor::Tensor;

use crate::SharedBytes;
use crate::custom::Custom;
use crate::error::OpError;
use crate::types::{DType, TensorType, element_count};
use crate::value::Value;

/// One value of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ValueId(pub(crate) u32);

impl ValueId {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// Type of a value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Type {
    Tensor(TensorType),
    /// A list of tensors of one type (`make_list` and its like).
    List(TensorType),
    /// The memory of a stateful model.
    State(TensorType),
}

impl Type {
    pub(crate) fn tensor(&self) -> &TensorType {
        match self {
            Self::Tensor(t) | Self::List(t) | Self::State(t) => t,
        }
    }

    /// The type of the tensor that holds the value while the program runs. A list is kept packed: its elements lie along a
    /// first dimension.
    pub(crate) fn run_time(&self) -> TensorType {
        match self {
            Self::Tensor(t) | Self::State(t) => t.clone(),
            Self::List(t) => {
                let packed =
                    |dims: &Vec<Option<usize>>| std::iter::once(None).chain(dims.iter().copied()).collect();
                TensorType { dtype: t.dtype, shape: t.shape.as_ref().map(packed) }
            }
        }
    }
}

/// A value: its name in the file, its type and, if it is known at load, its contents.
#[derive(Clone, Debug)]
pub(crate) struct ValueInfo {
    pub(crate) name: Arc<str>,
    pub(crate) ty: Type,
    pub(crate) constant: Option<Arc<Constant>>,
}

/// One argument of an op: a value, or several (`concat`'s `values`).
#[derive(Clone, Debug)]
pub(crate) enum Argument {
    One(ValueId),
    Many(Vec<ValueId>),
}

impl Argument {
    pub(crate) fn ids(&self) -> &[ValueId] {
        match self {
            Self::One(id) => std::slice::from_ref(id),
            Self::Many(ids) => ids,
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Op {
    /// Type of the op: `conv`, `linear`, …
    pub(crate) kind: Arc<str>,
    pub(crate) arguments: Vec<(Arc<str>, Argument)>,
    pub(crate) outputs: Vec<ValueId>,
    pub(crate) blocks: Vec<Block>,
}

impl Op {
    /// Calls `f` with every value that the op or its blocks name, with those that a block makes for itself.
    pub(crate) fn for_each_read(&self, f: &mut impl FnMut(ValueId)) {
        self.arguments.iter().flat_map(|(_, argument)| argument.ids()).for_each(|&id| f(id));
        for block in &self.blocks {
            block.ops.iter().for_each(|op| op.for_each_read(f));
            block.outputs.iter().for_each(|&id| f(id));
        }
    }

    /// How often its blocks are taken to run, for the estimate of the work: loops say so only while they run.
    pub(crate) fn repetitions(&self) -> usize {
        if &*self.kind == "while_loop" { 16 } else { 1 }
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Block {
    pub(crate) inputs: Vec<ValueId>,
    pub(crate) ops: Vec<Op>,
    pub(crate) outputs: Vec<ValueId>,
}

/// A function of a program; `main` is the usual one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Function {
    /// `CoreML5` … `CoreML9`; decides which version of an op is meant.
    pub(crate) opset: Opset,
    pub(crate) values: Vec<ValueInfo>,
    pub(crate) body: Block,
    /// The custom layers that ops name by their index.
    pub(crate) customs: Vec<Custom>,
}

impl Function {
    pub(crate) fn new_value(&mut self, name: impl Into<Arc<str>>, ty: Type) -> ValueId {
        self.push(ValueInfo { name: name.into(), ty, constant: None })
    }

    pub(crate) fn new_constant(&mut self, name: impl Into<Arc<str>>, constant: Constant) -> ValueId {
        let ty = Type::Tensor(TensorType::fixed(constant.dtype, &constant.shape));
        self.push(ValueInfo { name: name.into(), ty, constant: Some(Arc::new(constant)) })
    }

    fn push(&mut self, info: ValueInfo) -> ValueId {
        // A file of 2^32 values would be far larger than any file this decoder accepts.
        let id = u32::try_from(self.values.len()).unwrap_or(u32::MAX);
        self.values.push(info);
        ValueId(id)
    }

    pub(crate) fn value(&self, id: ValueId) -> &ValueInfo {
        &self.values[id.index()]
    }
}

/// The op set a function is written in, by the iOS release that brought it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[allow(missing_docs, reason = "the names are Apple's release names")]
pub enum Opset {
    /// Also where neural networks are lowered to.
    Ios13,
    Ios14,
    #[default]
    Ios15,
    Ios16,
    Ios17,
    Ios18,
    Ios26,
}

impl Opset {
    /// From the name in a program: `CoreML5` is iOS 15, and so on.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "CoreML3" => Self::Ios13,
            "CoreML4" => Self::Ios14,
            "CoreML5" => Self::Ios15,
            "CoreML6" => Self::Ios16,
            "CoreML7" => Self::Ios17,
            "CoreML8" => Self::Ios18,
            "CoreML9" => Self::Ios26,
            _ => return None,
        })
    }

    /// From the tag of a function in a compiled program: `ios17`.
    pub(crate) fn from_tag(tag: &str) -> Option<Self> {
        let all = [Self::Ios13, Self::Ios14, Self::Ios15, Self::Ios16, Self::Ios17, Self::Ios18, Self::Ios26];
        all.into_iter().find(|opset| opset.name().eq_ignore_ascii_case(tag))
    }

    /// The inverse of [`Opset::from_name`].
    pub(crate) fn program_name(self) -> &'static str {
        match self {
            Self::Ios13 => "CoreML3",
            Self::Ios14 => "CoreML4",
            Self::Ios15 => "CoreML5",
            Self::Ios16 => "CoreML6",
            Self::Ios17 => "CoreML7",
            Self::Ios18 => "CoreML8",
            Self::Ios26 => "CoreML9",
        }
    }

    /// `iOS17` and the like.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ios13 => "iOS13",
            Self::Ios14 => "iOS14",
            Self::Ios15 => "iOS15",
            Self::Ios16 => "iOS16",
            Self::Ios17 => "iOS17",
            Self::Ios18 => "iOS18",
            Self::Ios26 => "iOS26",
        }
    }
}

/// Contents that are known at load. The number of elements always equals the product of the shape: see
/// [`Constant::new`].
#[derive(Clone, Debug)]
pub(crate) struct Constant {
    dtype: DType,
    shape: Vec<usize>,
    data: ConstantData,
}

#[derive(Clone, Debug)]
pub(crate) enum ConstantData {
    F32(Vec<f32>),
    I32(Vec<i32>),
    Strings(Vec<String>),
    /// Little-endian elements of `dtype`, as in a weight file; widened when asked for.
    Raw(SharedBytes),
}

impl Constant {
    /// Checks that the data has the elements that shape and dtype announce.
    pub(crate) fn new(dtype: DType, shape: Vec<usize>, data: ConstantData) -> Result<Self, String> {
        let count = element_count(&shape).ok_or_else(|| format!("shape {shape:?} overflows"))?;
        let (found, wanted, unit) = match &data {
            ConstantData::F32(v) => (v.len(), Some(count), "elements"),
            ConstantData::I32(v) => (v.len(), Some(count), "elements"),
            ConstantData::Strings(v) => (v.len(), Some(count), "elements"),
            ConstantData::Raw(bytes) => {
                let bits = dtype.bits().ok_or("text cannot be stored as bytes")?;
                (bytes.len(), count.checked_mul(bits).map(|bits| bits.div_ceil(8)), "bytes")
            }
        };
        let wanted = wanted.ok_or_else(|| format!("shape {shape:?} overflows"))?;
        if found != wanted {
            return Err(format!("{dtype}{shape:?} needs {wanted} {unit}, the file has {found}"));
        }
        Ok(Self { dtype, shape, data })
    }

    pub(crate) fn f32(shape: &[usize], data: Vec<f32>) -> Result<Self, String> {
        Self::new(DType::F32, shape.to_vec(), ConstantData::F32(data))
    }

    #[cfg(test)]
    pub(crate) fn i32(shape: &[usize], data: Vec<i32>) -> Result<Self, String> {
        Self::new(DType::I32, shape.to_vec(), ConstantData::I32(data))
    }

    pub(crate) fn bool(value: bool) -> Self {
        Self { dtype: DType::Bool, shape: vec![], data: ConstantData::I32(vec![i32::from(value)]) }
    }

    pub(crate) fn scalar(value: f32) -> Self {
        Self { dtype: DType::F32, shape: vec![], data: ConstantData::F32(vec![value]) }
    }

    pub(crate) fn int(value: i32) -> Self {
        Self { dtype: DType::I32, shape: vec![], data: ConstantData::I32(vec![value]) }
    }

    pub(crate) fn string(value: &str) -> Self {
        Self { dtype: DType::String, shape: vec![], data: ConstantData::Strings(vec![value.to_owned()]) }
    }

    pub(crate) fn from_value(dtype: DType, value: Value) -> Self {
        let shape = value.shape().to_vec();
        let data = match value {
            Value::F32(t) => ConstantData::F32(t.into_data()),
            Value::I32(t) => ConstantData::I32(t.into_data()),
        };
        Self { dtype, shape, data }
    }

    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    pub(crate) fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub(crate) fn strings(&self) -> Option<&[String]> {
        match &self.data {
            ConstantData::Strings(v) => Some(v),
            _ => None,
        }
    }

    /// The elements as floats; integers are converted, text is an error.
    pub(crate) fn to_f32(&self) -> Result<Vec<f32>, OpError> {
        Ok(match &self.data {
            ConstantData::F32(v) => v.clone(),
            ConstantData::I32(v) => v.iter().map(|&x| x as f32).collect(),
            ConstantData::Strings(_) => return Err(OpError::Invalid("expected numbers, found text".into())),
            ConstantData::Raw(bytes) => match self.dtype {
                DType::F16 => widen_halves(bytes),
                DType::F32 => elements::<4>(bytes).map(f32::from_le_bytes).collect(),
                DType::F64 => elements::<8>(bytes).map(|b| f64::from_le_bytes(b) as f32).collect(),
                _ => self.to_i32()?.into_iter().map(|x| x as f32).collect(),
            },
        })
    }

    /// The elements as integers; floats and text are an error, and so is what does not fit.
    pub(crate) fn to_i32(&self) -> Result<Vec<i32>, OpError> {
        let fit = |x: i64| {
            i32::try_from(x).map_err(|_| OpError::Invalid(format!("the integer {x} does not fit 32 bits")))
        };
        Ok(match &self.data {
            ConstantData::I32(v) => v.clone(),
            ConstantData::F32(_) | ConstantData::Strings(_) => {
                return Err(OpError::Invalid(format!("expected integers, found {}", self.dtype)));
            }
            ConstantData::Raw(bytes) => match self.dtype {
                DType::Bool => bytes.iter().map(|&b| i32::from(b != 0)).collect(),
                DType::I8 => bytes.iter().map(|&b| i32::from(b as i8)).collect(),
                DType::U8 => bytes.iter().map(|&b| i32::from(b)).collect(),
                DType::I16 => elements::<2>(bytes).map(|b| i32::from(i16::from_le_bytes(b))).collect(),
                DType::U16 => elements::<2>(bytes).map(|b| i32::from(u16::from_le_bytes(b))).collect(),
                DType::I32 => elements::<4>(bytes).map(i32::from_le_bytes).collect(),
                DType::U32 => elements::<4>(bytes)
                    .map(|b| fit(i64::from(u32::from_le_bytes(b))))
                    .collect::<Result<_, _>>()?,
                DType::I64 => {
                    elements::<8>(bytes).map(|b| fit(i64::from_le_bytes(b))).collect::<Result<_, _>>()?
                }
                DType::U1 | DType::U2 | DType::U3 | DType::U4 | DType::U6 | DType::I4 => {
                    self.unpack_bits(bytes)
                }
                DType::F16 | DType::F32 | DType::F64 | DType::String => {
                    return Err(OpError::Invalid(format!("expected integers, found {}", self.dtype)));
                }
            },
        })
    }

    fn unpack_bits(&self, bytes: &[u8]) -> Vec<i32> {
        let bits = self.dtype.bits().unwrap_or(8);
        let count = element_count(&self.shape).unwrap_or(0);
        let signed = self.dtype == DType::I4;
        (0..count)
            .map(|i| {
                let value = unpack(bytes, bits, i);
                if signed && value >= 1 << (bits - 1) { value - (1 << bits) } else { value }
            })
            .collect()
    }

    /// The constant as a run-time value.
    pub(crate) fn to_value(&self) -> Result<Value, OpError> {
        Ok(if self.dtype.is_float() {
            Value::F32(Tensor::from_data(&self.shape, self.to_f32()?))
        } else {
            Value::I32(Tensor::from_data(&self.shape, self.to_i32()?))
        })
    }
}

fn elements<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    bytes.as_chunks::<N>().0.iter().copied()
}

/// Little-endian float16 elements as float32; a byte too many is left out.
pub(crate) fn widen_halves(bytes: &[u8]) -> Vec<f32> {
    let halves: Vec<f16> = elements::<2>(bytes).map(f16::from_le_bytes).collect();
    let mut floats = vec![0.0; halves.len()];
    halves[..].convert_to_f32_slice(&mut floats);
    floats
}

/// Rounds each to the nearest float16: a block at a time, for the processor converts several at once.
pub(crate) fn round_to_halves(floats: &mut [f32]) {
    let mut halves = [f16::ZERO; 256];
    for piece in floats.chunks_mut(halves.len()) {
        let halves = &mut halves[..piece.len()];
        halves.convert_from_f32_slice(piece);
        halves.convert_to_f32_slice(piece);
    }
}

/// The `i`th number of at most 8 bits; they lie in little-endian bit order, without padding between them. Beyond the bytes there are
/// zeros.
pub(crate) fn unpack(bytes: &[u8], bits: usize, i: usize) -> i32 {
    let first = i * bits;
    let byte = |i: usize| bytes.get(i).copied().map_or(0, u16::from);
    i32::from((byte(first / 8) | byte(first / 8 + 1) << 8) >> (first % 8)) & ((1 << bits) - 1)
}
