//! `constexpr` ops: compressed weights. They are worked out at load, so what reads them sees constants.
//!
//! Semantics: coremltools, `iOS16/constexpr_ops.py` and `iOS18/compression.py`; bits and sub-byte elements lie from the least
//! significant bit of a byte on. iOS 16 packs indices and masks in bytes and says the shape apart; iOS 18 has types for them.

use half::f16;
use rten_tensor::prelude::*;
use smallvec::SmallVec;

use super::{Input, Kernel, OpBuilder, OpDef, Run, parameter, resolve_axis};
use crate::error::{KernelError, OpError};
use crate::ir::Opset::{Ios16, Ios18};
use crate::ir::unpack;
use crate::types::{DType, element_count};
use crate::value::{Outputs, Value, ValueView, one};

pub(crate) const OPS: &[OpDef] = &[
    OpDef::new("constexpr_affine_dequantize", &[Ios16], affine_dequantize),
    OpDef::new("constexpr_blockwise_shift_scale", &[Ios18], blockwise_shift_scale),
    OpDef::new("constexpr_cast", &[Ios16, Ios18], cast),
    OpDef::new("constexpr_lut_to_dense", &[Ios16, Ios18], lut_to_dense),
    OpDef::new("constexpr_lut_to_sparse", &[Ios18], lut_to_sparse),
    OpDef::new("constexpr_sparse_blockwise_shift_scale", &[Ios18], sparse_blockwise_shift_scale),
    OpDef::new("constexpr_sparse_to_dense", &[Ios16, Ios18], sparse_to_dense),
];

type Dims = SmallVec<[usize; 6]>;

/// A parameter whose contents and shape are known.
fn known(op: &mut OpBuilder<'_>, name: &'static str) -> Result<(Input, Dims), OpError> {
    known_opt(op, name)?.ok_or(OpError::Missing(name))
}

fn known_opt(op: &mut OpBuilder<'_>, name: &'static str) -> Result<Option<(Input, Dims)>, OpError> {
    let Some(input) = op.input_opt(name)? else { return Ok(None) };
    let constant = input.constant.as_ref().ok_or(OpError::NotConstant(name))?;
    let shape = constant.shape().into();
    Ok(Some((input, shape)))
}

/// Elements in row-major order.
fn floats(run: &Run<'_, '_>, slot: usize) -> Result<Vec<f32>, KernelError> {
    Ok(match run.any(slot)? {
        ValueView::F32(view) => view.to_vec(),
        ValueView::I32(view) => view.iter().map(|&x| x as f32).collect(),
    })
}

fn integers(run: &Run<'_, '_>, slot: usize) -> Result<Vec<i32>, KernelError> {
    Ok(run.i32(slot)?.to_vec())
}

/// Arithmetic is in float32; float16 results are rounded once.
fn rounded(dtype: DType, x: f32) -> f32 {
    if dtype == DType::F16 { f16::from_f32(x).to_f32() } else { x }
}

/// Blocks of a tensor that share a scale, an offset or a palette.
#[derive(Clone, Debug)]
struct Blocks {
    shape: Dims,
    /// How many blocks there are along each axis.
    counts: Dims,
}

impl Blocks {
    /// `counts` must divide `shape`.
    fn new(name: &'static str, shape: &[usize], counts: &[usize]) -> Result<Self, OpError> {
        let divide = |(&size, &count): (&usize, &usize)| count > 0 && size % count == 0;
        if shape.is_empty() || shape.len() != counts.len() || !shape.iter().zip(counts).all(divide) {
            return Err(parameter(
                name,
                format!("{counts:?} blocks do not divide a tensor of shape {shape:?}"),
            ));
        }
        Ok(Self { shape: shape.into(), counts: counts.into() })
    }

    /// The block of each element, in row-major order.
    fn of_elements(&self) -> impl Iterator<Item = usize> + '_ {
        let last = self.shape.len() - 1;
        let width = self.shape[last];
        let rows: usize = self.shape[..last].iter().product();
        let block = |axis: usize| (self.shape[axis] / self.counts[axis]).max(1);
        (0..if width == 0 { 0 } else { rows }).flat_map(move |row| {
            let (mut rest, mut base, mut stride) = (row, 0, self.counts[last]);
            for axis in (0..last).rev() {
                base += rest % self.shape[axis] / block(axis) * stride;
                rest /= self.shape[axis];
                stride *= self.counts[axis];
            }
            let block = block(last);
            (0..width).map(move |i| base + i / block)
        })
    }
}

/// `scale * (data - offset)`, each block with its own; iOS 16 has one for all or one for each place along an axis.
fn shift_scale(
    dtype: DType,
    blocks: &Blocks,
    data: &[f32],
    scale: &[f32],
    offset: Option<&[f32]>,
) -> Result<Vec<f32>, KernelError> {
    let missing = || KernelError::value("a block has no scale");
    data.iter()
        .zip(blocks.of_elements())
        .map(|(&x, block)| {
            let offset = offset.map_or(Some(0.0), |offset| offset.get(block).copied()).ok_or_else(missing)?;
            Ok(rounded(dtype, scale.get(block).ok_or_else(missing)? * (x - offset)))
        })
        .collect()
}

fn tensor<T>(run: &Run<'_, '_>, shape: &[usize], data: Vec<T>) -> Result<Value, KernelError>
where
    Value: From<rten_tensor::Tensor<T>>,
{
    if run.check_size(shape)? != data.len() {
        return Err(KernelError::shape(format!("{} elements for a tensor of shape {shape:?}", data.len())));
    }
    Ok(rten_tensor::Tensor::from_data(shape, data).into())
}

fn affine_dequantize(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let (data, shape) = known(op, "quantized_data")?;
    let (scale, scales) = known(op, "scale")?;
    let (zero, zeros) = known(op, "zero_point")?;
    let axis = op.int_opt("axis")?.ok_or(OpError::Missing("axis"))?;
    let axis = resolve_axis(axis, shape.len()).map_err(|e| parameter("axis", e.to_string()))?;
    let blocks = |name: &'static str, counts: &[usize]| {
        let mut along: Dims = shape.iter().map(|_| 1).collect();
        match *counts {
            [] => {}
            [count] if count == shape[axis] || count == 1 => along[axis] = count,
            _ => return Err(parameter(name, format!("expected one, or {} along the axis", shape[axis]))),
        }
        Blocks::new(name, &shape, &along)
    };
    let (of_scales, of_zeros) = (blocks("scale", &scales)?, blocks("zero_point", &zeros)?);
    let dtype = scale.ty.dtype;
    Ok(Box::new(move |run| {
        let (data, scale) = (floats(run, data.slot)?, floats(run, scale.slot)?);
        let zero = floats(run, zero.slot)?;
        let missing = || KernelError::value("an element has no scale or no zero point");
        let places = of_scales.of_elements().zip(of_zeros.of_elements());
        let out = data.iter().zip(places).map(|(x, (s, z))| {
            let (scale, zero) = (scale.get(s).ok_or_else(missing)?, zero.get(z).ok_or_else(missing)?);
            Ok(rounded(dtype, scale * (x - zero)))
        });
        tensor(run, &of_scales.shape, out.collect::<Result<Vec<f32>, KernelError>>()?).map(one)
    }))
}

/// The parameters `scale` and `offset` for data of `shape`.
fn scale_and_offset(
    op: &mut OpBuilder<'_>,
    shape: &[usize],
) -> Result<(Blocks, Input, Option<Input>), OpError> {
    let (scale, counts) = known(op, "scale")?;
    let offset = known_opt(op, "offset")?;
    if let Some((_, found)) = &offset
        && *found != counts
    {
        return Err(parameter(
            "offset",
            format!("expected the shape of `scale`, {counts:?}, found {found:?}"),
        ));
    }
    Ok((Blocks::new("scale", shape, &counts)?, scale, offset.map(|(input, _)| input)))
}

fn blockwise_shift_scale(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let (data, shape) = known(op, "data")?;
    let (blocks, scale, offset) = scale_and_offset(op, &shape)?;
    let dtype = scale.ty.dtype;
    Ok(Box::new(move |run| {
        let (data, scale) = (floats(run, data.slot)?, floats(run, scale.slot)?);
        let offset = offset.as_ref().map(|offset| floats(run, offset.slot)).transpose()?;
        let out = shift_scale(dtype, &blocks, &data, &scale, offset.as_deref())?;
        tensor(run, &blocks.shape, out).map(one)
    }))
}

/// float16 to float32; both are float32 here.
fn cast(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let (source, _) = known(op, "source_val")?;
    let dtype = op.string("output_dtype", "fp32")?;
    if dtype != "fp32" {
        return Err(parameter("output_dtype", format!("expected fp32, found {dtype}")));
    }
    Ok(Box::new(move |run| run.take(source.slot).map(one)))
}

/// Bytes, of which only the low 8 bits of each element count.
fn bytes(run: &Run<'_, '_>, slot: usize) -> Result<Vec<u8>, KernelError> {
    Ok(run.i32(slot)?.iter().map(|&byte| byte as u8).collect())
}

/// Bits that say which elements are there, the first element in the least significant bit.
fn unpack_mask(bytes: &[u8], count: usize) -> Result<Vec<bool>, KernelError> {
    let bit = |i: usize| unpack(bytes, 1, i) == 1;
    if bytes.len() != count.div_ceil(8) || (count..bytes.len() * 8).any(bit) {
        return Err(KernelError::shape(format!("a mask of {} bytes for {count} elements", bytes.len())));
    }
    Ok((0..count).map(bit).collect())
}

/// The shape that iOS 16 says apart.
fn shape_of(op: &mut OpBuilder<'_>) -> Result<Option<Dims>, OpError> {
    if op.opset() >= Ios18 {
        return Ok(None);
    }
    let shape = op.ints_opt("shape")?.ok_or(OpError::Missing("shape"))?;
    let dim = |&dim: &i32| usize::try_from(dim).map_err(|_| parameter("shape", "a negative dimension"));
    shape.iter().map(dim).collect::<Result<_, _>>().map(Some)
}

/// A mask with an element for each bit.
fn there(bits: &[i32]) -> Vec<bool> {
    bits.iter().map(|&bit| bit != 0).collect()
}

/// Puts elements where the mask says, zeros elsewhere.
fn spread<T: Copy + Default>(mask: &[bool], elements: &[T]) -> Result<Vec<T>, KernelError> {
    let wanted = mask.iter().filter(|&&there| there).count();
    if wanted != elements.len() {
        return Err(KernelError::shape(format!("{} elements for a mask with {wanted}", elements.len())));
    }
    let mut next = elements.iter().copied();
    Ok(mask.iter().map(|&there| there.then(|| next.next()).flatten().unwrap_or_default()).collect())
}

fn gathered<T: Copy>(mask: &[bool], elements: &[T]) -> Vec<T> {
    mask.iter().zip(elements).filter(|(there, _)| **there).map(|(_, &x)| x).collect()
}

fn sparse_to_dense(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let (data, _) = known(op, "nonzero_data")?;
    let (mask, own) = known(op, "mask")?;
    let packed = shape_of(op)?;
    Ok(Box::new(move |run| {
        let shape = packed.as_ref().unwrap_or(&own);
        let count = run.check_size(shape)?;
        let mask = match packed {
            Some(_) => unpack_mask(&bytes(run, mask.slot)?, count)?,
            None => there(&integers(run, mask.slot)?),
        };
        match run.any(data.slot)? {
            ValueView::F32(view) => tensor(run, shape, spread(&mask, &view.to_vec())?),
            ValueView::I32(view) => tensor(run, shape, spread(&mask, &view.to_vec())?),
        }
        .map(one)
    }))
}

/// Palettes: a table of vectors for each block of the indices.
#[derive(Clone, Debug)]
struct Palettes {
    blocks: Blocks,
    /// Vectors in a palette, and elements in a vector.
    entries: usize,
    width: usize,
    /// The axis of the output that a vector lies along.
    axis: usize,
}

impl Palettes {
    fn new(
        indices: &[usize],
        bits: Option<usize>,
        lut: &[usize],
        axis: Option<i32>,
    ) -> Result<Self, OpError> {
        let &[ref counts @ .., entries, width] = lut else {
            return Err(parameter(
                "lut",
                format!("expected two axes more than the indices have, found {lut:?}"),
            ));
        };
        if bits.and_then(|bits| 1_usize.checked_shl(u32::try_from(bits).ok()?)) != Some(entries) {
            return Err(parameter("lut", format!("{entries} entries for indices of {bits:?} bits")));
        }
        let axis = match axis {
            Some(axis) => {
                resolve_axis(axis, indices.len()).map_err(|e| parameter("vector_axis", e.to_string()))?
            }
            None if width == 1 => 0,
            None => return Err(OpError::Missing("vector_axis")),
        };
        Ok(Self { blocks: Blocks::new("lut", indices, counts)?, entries, width, axis })
    }

    fn shape(&self) -> Dims {
        let mut shape = self.blocks.shape.clone();
        shape[self.axis] = shape[self.axis].saturating_mul(self.width);
        shape
    }

    /// The vector of each index, along the axis.
    fn look_up<T: Copy + Default>(&self, indices: &[i32], lut: &[T]) -> Result<Vec<T>, KernelError> {
        let inner: usize = self.blocks.shape[self.axis + 1..].iter().product();
        let count =
            element_count(&self.shape()).ok_or_else(|| KernelError::shape("the output is too large"))?;
        let mut out = vec![T::default(); count];
        for (i, (&index, block)) in indices.iter().zip(self.blocks.of_elements()).enumerate() {
            let vector = usize::try_from(index)
                .ok()
                .filter(|&index| index < self.entries)
                .map(|index| (block * self.entries + index) * self.width)
                .and_then(|start| lut.get(start..start + self.width))
                .ok_or_else(|| KernelError::value(format!("index {index} is not in the palette")))?;
            let first = (i / inner * self.width) * inner + i % inner;
            for (v, &x) in vector.iter().enumerate() {
                out[first + v * inner] = x;
            }
        }
        Ok(out)
    }
}

fn lut_to_dense(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let (indices, packed) = known(op, "indices")?;
    let (lut, table) = known(op, "lut")?;
    let (palettes, packed_bits) = match shape_of(op)? {
        // iOS 16: one palette for all, and packed indices.
        Some(shape) => {
            let &[entries] = &table[..] else {
                return Err(parameter("lut", format!("expected a vector, found shape {table:?}")));
            };
            if ![2, 4, 16, 64, 256].contains(&entries) {
                return Err(parameter(
                    "lut",
                    format!("expected 2, 4, 16, 64 or 256 entries, found {entries}"),
                ));
            }
            let bits = entries.ilog2() as usize;
            let count = element_count(&shape).and_then(|count| count.checked_mul(bits));
            if packed.len() != 1 || count.map(|bits| bits.div_ceil(8)) != Some(packed[0]) {
                return Err(parameter(
                    "indices",
                    format!("{packed:?} bytes for shape {shape:?} of {bits} bits"),
                ));
            }
            let mut lut: Dims = shape.iter().map(|_| 1).collect();
            lut.extend([entries, 1]);
            (Palettes::new(&shape, Some(bits), &lut, None)?, Some(bits))
        }
        None => {
            let axis = op.int_opt("vector_axis")?;
            (Palettes::new(&packed, indices.ty.dtype.bits(), &table, axis)?, None)
        }
    };
    Ok(Box::new(move |run| {
        let shape = palettes.shape();
        let count = run.check_size(&shape)?;
        let indices: Vec<i32> = match packed_bits {
            Some(bits) => {
                let packed = bytes(run, indices.slot)?;
                (0..count).map(|i| unpack(&packed, bits, i)).collect()
            }
            None => integers(run, indices.slot)?,
        };
        match run.any(lut.slot)? {
            ValueView::F32(lut) => tensor(run, &shape, palettes.look_up(&indices, &lut.to_vec())?),
            ValueView::I32(lut) => tensor(run, &shape, palettes.look_up(&indices, &lut.to_vec())?),
        }
        .map(one)
    }))
}

fn lut_to_sparse(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let (mask, shape) = known(op, "indices_mask")?;
    let (indices, _) = known(op, "indices_nonzero_data")?;
    let (lut, table) = known(op, "lut")?;
    let axis = op.int_opt("vector_axis")?;
    let palettes = Palettes::new(&shape, indices.ty.dtype.bits(), &table, axis)?;
    Ok(Box::new(move |run| {
        let shape = palettes.shape();
        run.check_size(&shape)?;
        let there = there(&integers(run, mask.slot)?);
        let indices = spread(&there, &integers(run, indices.slot)?)?;
        // A palette of masks: each vector is there, or it is not.
        let inner: usize = palettes.blocks.shape[palettes.axis + 1..].iter().product();
        let mut mask = Vec::with_capacity(there.len() * palettes.width);
        for row in there.chunks(inner.max(1)) {
            (0..palettes.width).for_each(|_| mask.extend_from_slice(row));
        }
        let data = match run.any(lut.slot)? {
            ValueView::F32(lut) => {
                let data = gathered(&mask, &palettes.look_up(&indices, &lut.to_vec())?);
                tensor(run, &[data.len()], data)?
            }
            ValueView::I32(lut) => {
                let data = gathered(&mask, &palettes.look_up(&indices, &lut.to_vec())?);
                tensor(run, &[data.len()], data)?
            }
        };
        let mask: Vec<i32> = mask.into_iter().map(i32::from).collect();
        let mut outputs = Outputs::new();
        outputs.push(tensor(run, &shape, mask)?);
        outputs.push(data);
        Ok(outputs)
    }))
}

fn sparse_blockwise_shift_scale(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let (mask, shape) = known(op, "data_mask")?;
    let (data, _) = known(op, "nonzero_data")?;
    let (blocks, scale, offset) = scale_and_offset(op, &shape)?;
    let dtype = scale.ty.dtype;
    Ok(Box::new(move |run| {
        let bits = integers(run, mask.slot)?;
        let there = there(&bits);
        let dense = spread(&there, &floats(run, data.slot)?)?;
        let scale = floats(run, scale.slot)?;
        let offset = offset.as_ref().map(|offset| floats(run, offset.slot)).transpose()?;
        let data = gathered(&there, &shift_scale(dtype, &blocks, &dense, &scale, offset.as_deref())?);
        let mut outputs = Outputs::new();
        outputs.push(tensor(run, &blocks.shape, bits)?);
        outputs.push(tensor(run, &[data.len()], data)?);
        Ok(outputs)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Constant, ConstantData, Opset};
    use crate::ops::testing::{Case, assert_close};

    /// A constant of sub-byte elements, packed from the least significant bit on.
    fn packed(dtype: DType, shape: &[usize], elements: &[i32]) -> Constant {
        let bits = dtype.bits().unwrap();
        let mut bytes = vec![0_u8; (elements.len() * bits).div_ceil(8)];
        for (i, &x) in elements.iter().enumerate() {
            for bit in 0..bits {
                bytes[(i * bits + bit) / 8] |= ((x >> bit & 1) as u8) << ((i * bits + bit) % 8);
            }
        }
        Constant::new(dtype, shape.to_vec(), ConstantData::Raw(bytes.into())).unwrap()
    }

    fn floats(shape: &[usize], data: &[f32]) -> Constant {
        Constant::f32(shape, data.to_vec()).unwrap()
    }

    fn case(kind: &'static str) -> Case {
        Case::in_opset(kind, Opset::Ios18)
    }

    #[test]
    fn affine_dequantize_scales_along_an_axis() {
        let found = Case::in_opset("constexpr_affine_dequantize", Opset::Ios16)
            .constant("quantized_data", packed(DType::U8, &[2, 3], &[10, 20, 30, 40, 50, 255]))
            .constant("zero_point", packed(DType::U8, &[3], &[10, 0, 5]))
            .constant("scale", floats(&[3], &[1.0, 0.5, 2.0]))
            .int("axis", 1)
            .f32();
        assert_eq!(found, (vec![2, 3], vec![0.0, 10.0, 50.0, 30.0, 25.0, 500.0]));
    }

    #[test]
    fn a_byte_of_int8_is_signed() {
        let found = Case::in_opset("constexpr_affine_dequantize", Opset::Ios16)
            .constant("quantized_data", packed(DType::I8, &[2], &[-128, 127]))
            .constant("zero_point", packed(DType::I8, &[], &[-1]))
            .constant("scale", floats(&[], &[2.0]))
            .int("axis", 0)
            .f32();
        assert_eq!(found.1, [-254.0, 256.0]);
    }

    /// The example of coremltools' documentation: two groups of two bits.
    #[test]
    fn grouped_palettes_are_looked_up_by_block() {
        let indices = packed(DType::U2, &[6, 2], &[2, 3, 3, 0, 1, 0, 3, 0, 2, 1, 0, 3]);
        let lut = floats(&[2, 1, 4, 1], &[1.0, 5.0, 9.0, 13.0, 2.0, 10.0, 18.0, 26.0]);
        let found = case("constexpr_lut_to_dense").constant("indices", indices).constant("lut", lut).f32();
        let expected = [9.0, 13.0, 13.0, 1.0, 5.0, 1.0, 26.0, 2.0, 18.0, 10.0, 2.0, 26.0];
        assert_eq!(found, (vec![6, 2], expected.to_vec()));
    }

    /// The other example: vectors of three along either axis.
    #[test]
    fn vectors_lie_along_their_axis() {
        let (a, b) = ([1.0, 2.0, 3.0], [11.0, 12.0, 13.0]);
        let lut = floats(&[1, 1, 1, 2, 3], &[a, b].concat());
        let indices = packed(DType::U1, &[2, 2, 2], &[0, 0, 1, 0, 1, 1, 0, 0]);
        let run = |axis: i32| {
            let case = case("constexpr_lut_to_dense").constant("indices", indices.clone());
            case.constant("lut", lut.clone()).int("vector_axis", axis).f32()
        };
        let (shape, found) = run(1);
        assert_eq!(shape, [2, 6, 2]);
        let pairs = |x: [f32; 3], y: [f32; 3]| (0..3).flat_map(|i| [x[i], y[i]]).collect::<Vec<_>>();
        assert_eq!(found, [pairs(a, a), pairs(b, a), pairs(b, b), pairs(a, a)].concat());
        let (shape, found) = run(-1);
        assert_eq!(shape, [2, 2, 6]);
        assert_eq!(found, [a, a, b, a, b, b, a, a].concat());
    }

    #[test]
    fn ios16_packs_indices_across_bytes() {
        let elements = [0, 63, 17, 42, 5];
        let lut: Vec<f32> = (0..64).map(|i| i as f32 * 0.5).collect();
        let bits = packed(DType::U6, &[5], &elements);
        let bytes: Vec<i32> = (0..4)
            .map(|i| {
                (0..8).map(|b| (i * 8 + b, b)).fold(0, |byte, (bit, b)| {
                    let on = bit < 30 && elements[bit / 6] >> (bit % 6) & 1 == 1;
                    byte | i32::from(on) << b
                })
            })
            .collect();
        let found = Case::in_opset("constexpr_lut_to_dense", Opset::Ios16)
            .constant("indices", packed(DType::U8, &[4], &bytes))
            .constant("lut", floats(&[64], &lut))
            .ints("shape", &[5])
            .f32();
        assert_eq!(found.1, elements.map(|i| i as f32 * 0.5));
        let found = case("constexpr_lut_to_dense")
            .constant("indices", bits)
            .constant("lut", floats(&[1, 64, 1], &lut))
            .f32();
        assert_eq!(found.1, elements.map(|i| i as f32 * 0.5));
    }

    #[test]
    fn the_form_is_that_of_the_opset() {
        let palette = |opset, lut: &[usize]| {
            let case = Case::in_opset("constexpr_lut_to_dense", opset);
            let case = case.constant("indices", packed(DType::U8, &[1], &[0b01]));
            case.constant("lut", floats(lut, &[1.0, 2.0]))
        };
        assert_eq!(palette(Opset::Ios17, &[1, 2, 1]).error(), "parameter `shape` is missing");
        let axis = palette(Opset::Ios17, &[2]).ints("shape", &[2]).int("vector_axis", 0);
        assert_eq!(axis.error(), "unknown parameter `vector_axis` in opset iOS17");
        let sparse = |opset, mask: Constant| {
            let case = Case::in_opset("constexpr_sparse_to_dense", opset);
            case.constant("nonzero_data", floats(&[1], &[3.0])).constant("mask", mask)
        };
        let bits = || packed(DType::U1, &[2], &[1, 0]);
        assert_eq!(sparse(Opset::Ios17, bits()).error(), "parameter `shape` is missing");
        let error = sparse(Opset::Ios18, bits()).ints("shape", &[2]).error();
        assert_eq!(error, "unknown parameter `shape` in opset iOS18");
    }

    #[test]
    fn sparse_elements_go_where_the_mask_says() {
        let found = Case::in_opset("constexpr_sparse_to_dense", Opset::Ios16)
            .constant("nonzero_data", floats(&[2], &[3.0, 5.0]))
            .constant("mask", packed(DType::U8, &[1], &[0b0_1100]))
            .ints("shape", &[5])
            .f32();
        assert_eq!(found, (vec![5], vec![0.0, 0.0, 3.0, 5.0, 0.0]));
        let found = case("constexpr_sparse_to_dense")
            .constant("nonzero_data", floats(&[3], &[1.0, 2.0, 3.0]))
            .constant("mask", packed(DType::U1, &[2, 3], &[1, 0, 1, 0, 0, 1]))
            .f32();
        assert_eq!(found, (vec![2, 3], vec![1.0, 0.0, 2.0, 0.0, 0.0, 3.0]));
    }

    #[test]
    fn blocks_have_scales_and_offsets() {
        let found = case("constexpr_blockwise_shift_scale")
            .constant("data", packed(DType::I4, &[2, 4], &[1, -2, 3, -4, 5, -6, 7, -8]))
            .constant("scale", floats(&[1, 2], &[10.0, 1.0]))
            .constant("offset", packed(DType::I4, &[1, 2], &[1, -1]))
            .f32();
        assert_eq!(found, (vec![2, 4], vec![0.0, -30.0, 4.0, -3.0, 40.0, -70.0, 8.0, -7.0]));
    }

    #[test]
    fn halves_are_rounded_once() {
        let scale = Constant::new(DType::F16, vec![1], ConstantData::F32(vec![0.1])).unwrap();
        let outputs = case("constexpr_blockwise_shift_scale")
            .constant("data", packed(DType::I8, &[1], &[3]))
            .constant("scale", scale)
            .run(&[DType::F16])
            .unwrap();
        let Value::F32(found) = &outputs[0] else { panic!("integers") };
        assert_close(&found.to_vec(), &[f16::from_f32(0.3).to_f32()], 0.0);
    }

    /// The example of coremltools' documentation.
    #[test]
    fn sparse_vectors_widen_the_mask() {
        let mask = [1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 0, 1, 1, 0, 1, 0, 0, 0, 0, 1, 0, 0];
        let outputs = case("constexpr_lut_to_sparse")
            .constant("indices_mask", packed(DType::U1, &[4, 6], &mask))
            .constant("indices_nonzero_data", packed(DType::U1, &[9], &[0, 1, 1, 0, 1, 1, 0, 0, 1]))
            .constant("lut", floats(&[1, 1, 2, 2], &[2.0, 20.0, 3.0, 30.0]))
            .int("vector_axis", 0)
            .run(&[DType::U1, DType::F32])
            .unwrap();
        let (Value::I32(wide), Value::F32(data)) = (&outputs[0], &outputs[1]) else { panic!("types") };
        let expected: Vec<i32> = mask.chunks(6).flat_map(|row| [row, row].concat()).collect();
        assert_eq!((wide.shape(), wide.to_vec()), (&[8, 6][..], expected));
        let expected = [
            2.0, 3.0, 20.0, 30.0, 3.0, 2.0, 3.0, 30.0, 20.0, 30.0, 3.0, 2.0, 2.0, 30.0, 20.0, 20.0, 3.0, 30.0,
        ];
        assert_eq!(data.to_vec(), expected);
    }

    /// The example of coremltools' documentation.
    #[test]
    fn sparse_elements_are_scaled_by_their_place() {
        let mask = [1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1, 0, 0];
        let outputs = case("constexpr_sparse_blockwise_shift_scale")
            .constant("data_mask", packed(DType::U1, &[5, 4], &mask))
            .constant("nonzero_data", packed(DType::I8, &[11], &[10, 11, 10, 11, 3, 4, 5, 6, 7, 8, 9]))
            .constant("scale", floats(&[1, 4], &[0.1, 0.2, 0.3, 0.4]))
            .constant("offset", packed(DType::I8, &[1, 4], &[1, 2, 3, 4]))
            .run(&[DType::U1, DType::F32])
            .unwrap();
        let (Value::I32(same), Value::F32(data)) = (&outputs[0], &outputs[1]) else { panic!("types") };
        assert_eq!(same.to_vec(), mask);
        assert_close(&data.to_vec(), &[0.9, 1.8, 0.9, 1.8, 0.2, 0.4, 0.6, 0.9, 1.2, 0.7, 1.4], 1e-6);
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        let mask = packed(DType::U1, &[2, 2], &[1, 0, 0, 0]);
        let sparse = case("constexpr_sparse_to_dense").constant("nonzero_data", floats(&[2], &[1.0, 2.0]));
        assert!(sparse.constant("mask", mask).error().contains("2 elements for a mask with 1"));
        let blocks = case("constexpr_blockwise_shift_scale")
            .constant("data", packed(DType::I8, &[3], &[1, 2, 3]))
            .constant("scale", floats(&[2], &[1.0, 2.0]));
        assert!(blocks.error().contains("[2] blocks do not divide a tensor of shape [3]"));
        let lut = case("constexpr_lut_to_dense")
            .constant("indices", packed(DType::U2, &[2], &[0, 3]))
            .constant("lut", floats(&[1, 2, 1], &[1.0, 2.0]));
        assert!(lut.error().contains("2 entries for indices of Some(2) bits"));
        let computed =
            case("constexpr_cast").input("source_val", &[1], &[1.0]).string("output_dtype", "fp32");
        assert!(computed.error().contains("source_val"));
    }
}
