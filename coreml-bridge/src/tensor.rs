//! Tensors: owned, counted, typed memory with a shape and strides.
//!
//! A [`Tensor`] owns what it points at, so it can cross threads and outlive any call: the framework may keep an input for
//! a second after the prediction, and then it keeps the memory alive by count. No `unsafe` is needed here: the memory is
//! a `Vec` of its own element type.

use core::fmt;
use std::sync::Arc;

use half::{f16, slice::HalfFloatSliceExt};
use thiserror::Error;

use crate::{
    dtype::{Dtype, Element, sealed::Sealed, with_element},
    layout,
};

/// Why a tensor cannot be made or seen as asked.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TensorError {
    /// The shape announces another number of elements than there are.
    #[error("a tensor of shape {shape:?} has {expected} elements, not {found}")]
    Length {
        /// The shape asked for.
        shape: Vec<usize>,
        /// How many elements it has.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// The number of strides is not the number of dimensions.
    #[error("a shape of {rank} dimensions needs as many strides, not {found}")]
    Rank {
        /// How many dimensions the shape has.
        rank: usize,
        /// How many strides, or axes, were given.
        found: usize,
    },
    /// The elements that shape and strides name do not lie within the memory.
    #[error("shape {shape:?} with strides {strides:?} reaches beyond the {available} elements given")]
    OutOfBounds {
        /// The shape asked for.
        shape: Vec<usize>,
        /// The strides asked for, in elements.
        strides: Vec<usize>,
        /// How many elements there are.
        available: usize,
    },
    /// Two indices might name the same element.
    #[error("shape {shape:?} with strides {strides:?} names an element twice")]
    Overlapping {
        /// The shape asked for.
        shape: Vec<usize>,
        /// The strides asked for, in elements.
        strides: Vec<usize>,
    },
    /// The element type asked for is not the tensor's.
    #[error("the elements are {found}, not {expected}")]
    Dtype {
        /// The element type asked for.
        expected: Dtype,
        /// The tensor's.
        found: Dtype,
    },
    /// A slice of the elements was asked for, and they do not lie one after the other.
    #[error("a tensor of shape {shape:?} with strides {strides:?} is not contiguous")]
    NotContiguous {
        /// The tensor's shape.
        shape: Vec<usize>,
        /// The tensor's strides, in elements.
        strides: Vec<usize>,
    },
    /// The axes are not a permutation of the tensor's dimensions.
    #[error("{axes:?} is not a permutation of {rank} dimensions")]
    Axes {
        /// The axes given.
        axes: Vec<usize>,
        /// How many dimensions there are.
        rank: usize,
    },
    /// A part of a tensor that is not within it was asked for.
    #[error("{start}..{end} along axis {axis} is not within a tensor of shape {shape:?}")]
    Narrow {
        /// The tensor's shape.
        shape: Vec<usize>,
        /// The axis.
        axis: usize,
        /// Where the range starts.
        start: usize,
        /// Where the range ends.
        end: usize,
    },
    /// The shape has more elements than memory can hold.
    #[error("a tensor of shape {shape:?} does not fit in memory")]
    TooLarge {
        /// The shape asked for.
        shape: Vec<usize>,
    },
}

/// The memory of a tensor.
#[derive(Clone, PartialEq)]
pub enum Storage {
    Float16(Vec<f16>),
    Float32(Vec<f32>),
    Float64(Vec<f64>),
    Int8(Vec<i8>),
    Int32(Vec<i32>),
}

impl Storage {
    pub(crate) fn zeroed(dtype: Dtype, count: usize, shape: &[usize]) -> Result<Storage, TensorError> {
        let too_large = |_| TensorError::TooLarge { shape: shape.to_vec() };
        with_element!(dtype, T => {
            // `vec![0; n]` gets zeroed pages from the system; the reservation only finds out whether there is room.
            let mut probe = Vec::<T>::new();
            probe.try_reserve_exact(count).map_err(too_large)?;
            drop(probe);
            Ok(T::into_storage(vec![<T as bytemuck::Zeroable>::zeroed(); count]))
        })
    }

    pub(crate) fn dtype(&self) -> Dtype {
        match self {
            Storage::Float16(_) => Dtype::Float16,
            Storage::Float32(_) => Dtype::Float32,
            Storage::Float64(_) => Dtype::Float64,
            Storage::Int8(_) => Dtype::Int8,
            Storage::Int32(_) => Dtype::Int32,
        }
    }

    /// How many elements there are.
    pub(crate) fn len(&self) -> usize {
        match self {
            Storage::Float16(elements) => elements.len(),
            Storage::Float32(elements) => elements.len(),
            Storage::Float64(elements) => elements.len(),
            Storage::Int8(elements) => elements.len(),
            Storage::Int32(elements) => elements.len(),
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Storage::Float16(elements) => bytemuck::cast_slice(elements),
            Storage::Float32(elements) => bytemuck::cast_slice(elements),
            Storage::Float64(elements) => bytemuck::cast_slice(elements),
            Storage::Int8(elements) => bytemuck::cast_slice(elements),
            Storage::Int32(elements) => bytemuck::cast_slice(elements),
        }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Storage::Float16(elements) => bytemuck::cast_slice_mut(elements),
            Storage::Float32(elements) => bytemuck::cast_slice_mut(elements),
            Storage::Float64(elements) => bytemuck::cast_slice_mut(elements),
            Storage::Int8(elements) => bytemuck::cast_slice_mut(elements),
            Storage::Int32(elements) => bytemuck::cast_slice_mut(elements),
        }
    }
}

/// An n-dimensional array of numbers: Core ML's multi-array.
///
/// Owned and counted: cloning shares the memory, and writing ([`Tensor::make_mut`]) copies it first if somebody else
/// shares it. `Send + Sync + 'static`, so that inputs and outputs travel between threads, and a framework that keeps an
/// input longer than the call keeps it alive.
///
/// ```
/// use coreml_bridge::{Dtype, Tensor};
///
/// let image = Tensor::from_vec(&[1, 2, 3], vec![0.5_f32; 6])?;
/// assert_eq!((image.dtype(), image.shape(), image.strides()), (Dtype::Float32, &[1, 2, 3][..], &[6, 3, 1][..]));
/// assert_eq!(image.as_slice::<f32>()?[5], 0.5);
/// assert!(image.as_slice::<i32>().is_err(), "the element type is checked");
/// assert!(Tensor::from_vec(&[7], vec![0.5_f32; 6]).is_err(), "and so is the length");
/// # Ok::<(), coreml_bridge::TensorError>(())
/// ```
#[derive(Clone)]
pub struct Tensor {
    /// Every element that `shape` and `strides` name from `start` on lies within `storage`, and no two of them share memory.
    storage: Arc<Storage>,
    start: usize,
    shape: Arc<[usize]>,
    strides: Arc<[usize]>,
}

impl Tensor {
    /// A dense tensor on `elements`, row-major, without a copy.
    ///
    /// # Errors
    /// [`TensorError::Length`] if `shape` has another number of elements, [`TensorError::TooLarge`] if it overflows.
    pub fn from_vec<T: Element>(shape: &[usize], elements: Vec<T>) -> Result<Tensor, TensorError> {
        let expected = layout::count(shape)?;
        if expected != elements.len() {
            return Err(TensorError::Length { shape: shape.to_vec(), expected, found: elements.len() });
        }
        Ok(Self::dense(shape, T::into_storage(elements)))
    }

    /// A dense tensor with a copy of `elements`, row-major.
    ///
    /// # Errors
    /// As [`Tensor::from_vec`].
    pub fn from_slice<T: Element>(shape: &[usize], elements: &[T]) -> Result<Tensor, TensorError> {
        Self::from_vec(shape, elements.to_vec())
    }

    /// A dense tensor of zeros.
    ///
    /// # Errors
    /// [`TensorError::TooLarge`] if it does not fit in memory.
    pub fn zeros(dtype: Dtype, shape: &[usize]) -> Result<Tensor, TensorError> {
        let bytes = layout::byte_len(shape, dtype.size())?;
        Ok(Self::dense(shape, Storage::zeroed(dtype, bytes / dtype.size(), shape)?))
    }

    /// A tensor of rank 0 with one element.
    #[must_use]
    pub fn scalar<T: Element>(element: T) -> Tensor {
        Self::dense(&[], T::into_storage(vec![element]))
    }

    /// A tensor with a copy of the elements in `bytes`, in the machine's byte order and of any alignment.
    ///
    /// `strides` are in elements; without them the bytes are dense and row-major. What lies between the elements is copied too:
    /// the tensor has the strides given.
    ///
    /// # Errors
    /// [`TensorError::Length`] if dense bytes are too few or too many, [`TensorError::Rank`] if shape and strides differ in
    /// length, [`TensorError::OutOfBounds`] if an element lies beyond the bytes, [`TensorError::Overlapping`] if elements
    /// share memory, [`TensorError::TooLarge`] on overflow.
    ///
    /// ```
    /// use coreml_bridge::{Dtype, Tensor};
    ///
    /// // Two rows of three bytes, padded to four.
    /// let padded = Tensor::from_bytes(Dtype::Int8, &[2, 3], Some(&[4, 1]), &[1, 2, 3, 0, 4, 5, 6])?;
    /// assert_eq!(padded.to_vec::<i8>()?, [1, 2, 3, 4, 5, 6]);
    /// # Ok::<(), coreml_bridge::TensorError>(())
    /// ```
    pub fn from_bytes(
        dtype: Dtype,
        shape: &[usize],
        strides: Option<&[usize]>,
        bytes: &[u8],
    ) -> Result<Tensor, TensorError> {
        let expected = layout::byte_len(shape, dtype.size())? / dtype.size();
        let available = bytes.len() / dtype.size();
        let Some(strides) = strides else {
            if bytes.len() != expected * dtype.size() {
                return Err(TensorError::Length { shape: shape.to_vec(), expected, found: available });
            }
            return Ok(Self::dense(shape, copied(dtype, bytes, shape)?));
        };
        if strides.len() != shape.len() {
            return Err(TensorError::Rank { rank: shape.len(), found: strides.len() });
        }
        if !layout::is_injective(shape, strides) {
            return Err(TensorError::Overlapping { shape: shape.to_vec(), strides: strides.to_vec() });
        }
        let span = layout::span(shape, strides).filter(|&span| span <= available).ok_or_else(|| {
            TensorError::OutOfBounds { shape: shape.to_vec(), strides: strides.to_vec(), available }
        })?;
        let storage = copied(dtype, &bytes[..span * dtype.size()], shape)?;
        Ok(Tensor { storage: Arc::new(storage), start: 0, shape: shape.into(), strides: strides.into() })
    }

    /// The length must have been checked.
    pub(crate) fn dense(shape: &[usize], storage: Storage) -> Tensor {
        Self::on(Arc::new(storage), shape.into())
    }

    /// A dense tensor on shared memory; the length must have been checked.
    pub(crate) fn on(storage: Arc<Storage>, shape: Arc<[usize]>) -> Tensor {
        debug_assert_eq!(layout::count(&shape), Ok(storage.len()));
        let strides = layout::row_major(&shape).into();
        Tensor { storage, start: 0, shape, strides }
    }

    /// The element type.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.storage.dtype()
    }

    /// The dimensions, outermost first.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// How many elements lie between neighbours in each dimension.
    #[must_use]
    pub fn strides(&self) -> &[usize] {
        &self.strides
    }

    /// How many dimensions there are.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// How many elements there are.
    #[must_use]
    pub fn len(&self) -> usize {
        // Checked when the tensor was made.
        if self.is_empty() { 0 } else { self.shape.iter().product() }
    }

    /// Whether some dimension is 0.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }

    /// Bytes of the elements, without what may lie between them.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.len() * self.dtype().size()
    }

    /// Whether the elements lie one after the other in row-major order.
    #[must_use]
    pub fn is_contiguous(&self) -> bool {
        layout::is_row_major(&self.shape, &self.strides)
    }

    /// The elements, in row-major order.
    ///
    /// # Errors
    /// [`TensorError::Dtype`] if the elements are not `T`, [`TensorError::NotContiguous`] if they do not lie one after the
    /// other; [`Tensor::to_dense`] makes them so.
    pub fn as_slice<T: Element>(&self) -> Result<&[T], TensorError> {
        let elements = self.elements::<T>()?;
        if !self.is_contiguous() {
            return Err(self.not_contiguous());
        }
        Ok(&elements[self.start..self.start + self.len()])
    }

    /// The elements' bytes, in row-major order and the machine's byte order.
    ///
    /// # Errors
    /// [`TensorError::NotContiguous`] as [`Tensor::as_slice`].
    pub fn as_bytes(&self) -> Result<&[u8], TensorError> {
        if !self.is_contiguous() {
            return Err(self.not_contiguous());
        }
        let size = self.dtype().size();
        Ok(&self.storage.bytes()[self.start * size..(self.start + self.len()) * size])
    }

    /// The elements, in row-major order, wherever they lie.
    ///
    /// # Errors
    /// [`TensorError::Dtype`] if the elements are not `T`.
    pub fn iter<T: Element>(&self) -> Result<Elements<'_, T>, TensorError> {
        let elements = self.elements::<T>()?;
        Ok(Elements(if self.is_contiguous() {
            Walk::Dense(elements[self.start..self.start + self.len()].iter())
        } else {
            Walk::Strided(elements, layout::Offsets::new(&self.shape, &self.strides, self.start))
        }))
    }

    /// The elements copied into a vector, in row-major order.
    ///
    /// # Errors
    /// [`TensorError::Dtype`] if the elements are not `T`.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>, TensorError> {
        match self.as_slice() {
            Ok(elements) => Ok(elements.to_vec()),
            Err(TensorError::NotContiguous { .. }) => Ok(self.iter()?.collect()),
            Err(error) => Err(error),
        }
    }

    /// This tensor if it is contiguous, else a dense copy.
    #[must_use]
    pub fn to_dense(&self) -> Tensor {
        if self.is_contiguous() {
            return self.clone();
        }
        with_element!(self.dtype(), T => {
            let elements = self.gather(|element: T| element);
            Self::on(Arc::new(T::into_storage(elements)), self.shape.clone())
        })
    }

    /// The same numbers as another element type.
    ///
    /// To a narrower float: rounded to the nearest, out of range to infinity. From float to integer: towards zero, out of
    /// range to the nearest end, NaN to 0. Between integers: out of range to the nearest end.
    ///
    /// ```
    /// use coreml_bridge::{Dtype, Tensor};
    ///
    /// let numbers = Tensor::from_vec(&[3], vec![-1.75_f32, f32::NAN, 1e9])?;
    /// assert_eq!(numbers.cast(Dtype::Int8).to_vec::<i8>()?, [-1, 0, 127]);
    /// # Ok::<(), coreml_bridge::TensorError>(())
    /// ```
    #[must_use]
    pub fn cast(&self, dtype: Dtype) -> Tensor {
        if self.dtype() == dtype {
            return self.clone();
        }
        let storage = match (&*self.storage, dtype) {
            // The pair that models meet most has instructions of its own.
            (Storage::Float16(elements), Dtype::Float32) if self.is_contiguous() => {
                Storage::Float32(elements[self.start..self.start + self.len()].to_f32_vec())
            }
            (Storage::Float32(elements), Dtype::Float16) if self.is_contiguous() => {
                let mut halves = vec![f16::ZERO; self.len()];
                halves.convert_from_f32_slice(&elements[self.start..self.start + self.len()]);
                Storage::Float16(halves)
            }
            _ => with_element!(self.dtype(), From => with_element!(dtype, To => {
                To::into_storage(self.gather(|element: From| To::from_f64(element.to_f64())))
            })),
        };
        Self::on(Arc::new(storage), self.shape.clone())
    }

    /// The same elements in another shape; shares the memory if the tensor is contiguous, else copies.
    ///
    /// # Errors
    /// [`TensorError::Length`] if the number of elements differs.
    pub fn reshape(&self, shape: &[usize]) -> Result<Tensor, TensorError> {
        let expected = layout::count(shape)?;
        if expected != self.len() {
            return Err(TensorError::Length { shape: shape.to_vec(), expected, found: self.len() });
        }
        let dense = self.to_dense();
        Ok(Tensor { shape: shape.into(), strides: layout::row_major(shape).into(), ..dense })
    }

    /// The same memory with the dimensions in another order: dimension `i` of the result is dimension `axes[i]` of this
    /// tensor.
    ///
    /// # Errors
    /// [`TensorError::Axes`] if `axes` is not a permutation of the dimensions.
    ///
    /// ```
    /// use coreml_bridge::Tensor;
    ///
    /// let rows = Tensor::from_vec(&[2, 3], vec![1, 2, 3, 4, 5, 6])?;
    /// let columns = rows.permute(&[1, 0])?;
    /// assert_eq!(columns.to_vec::<i32>()?, [1, 4, 2, 5, 3, 6]);
    /// # Ok::<(), coreml_bridge::TensorError>(())
    /// ```
    pub fn permute(&self, axes: &[usize]) -> Result<Tensor, TensorError> {
        let mut seen = vec![false; self.rank()];
        let permutes = axes.len() == self.rank()
            && axes
                .iter()
                .all(|&axis| seen.get_mut(axis).is_some_and(|seen| !core::mem::replace(seen, true)));
        if !permutes {
            return Err(TensorError::Axes { axes: axes.to_vec(), rank: self.rank() });
        }
        Ok(Tensor {
            shape: axes.iter().map(|&axis| self.shape[axis]).collect(),
            strides: axes.iter().map(|&axis| self.strides[axis]).collect(),
            ..self.clone()
        })
    }

    /// The part of this tensor whose index along `axis` lies in `range`, on the same memory.
    ///
    /// # Errors
    /// [`TensorError::Narrow`] if there is no such dimension, or the range is not within it.
    ///
    /// ```
    /// use coreml_bridge::Tensor;
    ///
    /// let batch = Tensor::from_vec(&[3, 2], vec![1, 2, 3, 4, 5, 6])?;
    /// assert_eq!(batch.narrow(0, 1..3)?.as_slice::<i32>()?, [3, 4, 5, 6]);
    /// assert_eq!(batch.narrow(1, 1..2)?.to_vec::<i32>()?, [2, 4, 6]);
    /// # Ok::<(), coreml_bridge::TensorError>(())
    /// ```
    pub fn narrow(&self, axis: usize, range: core::ops::Range<usize>) -> Result<Tensor, TensorError> {
        let within = |&dimension: &usize| range.start <= range.end && range.end <= dimension;
        if !self.shape.get(axis).is_some_and(within) {
            let core::ops::Range { start, end } = range;
            return Err(TensorError::Narrow { shape: self.shape.to_vec(), axis, start, end });
        }
        let mut shape = self.shape.to_vec();
        shape[axis] = range.len();
        // An empty tensor names no element, and must not point beyond its memory either.
        let start =
            if shape.contains(&0) { self.start } else { self.start + range.start * self.strides[axis] };
        Ok(Tensor { start, shape: shape.into(), ..self.clone() })
    }

    /// The elements, for writing, in row-major order. Copies them first if the memory is shared or not contiguous.
    ///
    /// # Errors
    /// [`TensorError::Dtype`] if the elements are not `T`.
    ///
    /// ```
    /// use coreml_bridge::Tensor;
    ///
    /// let mut first = Tensor::from_vec(&[2], vec![1, 2])?;
    /// let second = first.clone();
    /// first.make_mut::<i32>()?[0] = 9;
    /// assert_eq!((first.to_vec::<i32>()?, second.to_vec::<i32>()?), (vec![9, 2], vec![1, 2]));
    /// # Ok::<(), coreml_bridge::TensorError>(())
    /// ```
    pub fn make_mut<T: Element>(&mut self) -> Result<&mut [T], TensorError> {
        self.elements::<T>()?;
        let whole = self.start == 0 && self.len() == self.storage.len() && self.is_contiguous();
        if !whole || Arc::get_mut(&mut self.storage).is_none() {
            let elements = self.gather(|element: T| element);
            *self = Self::on(Arc::new(T::into_storage(elements)), self.shape.clone());
        }
        let found = self.dtype();
        Arc::get_mut(&mut self.storage)
            .and_then(T::elements_mut)
            .ok_or(TensorError::Dtype { expected: T::DTYPE, found })
    }

    /// How many tensors, and native arrays on their behalf, share this memory.
    #[must_use]
    pub fn shared_by(&self) -> usize {
        Arc::strong_count(&self.storage)
    }

    pub(crate) fn storage(&self) -> &Arc<Storage> {
        &self.storage
    }

    /// The memory, if nobody shares it.
    pub(crate) fn storage_mut(&mut self) -> Option<&mut Storage> {
        Arc::get_mut(&mut self.storage)
    }

    /// The memory from the first element to the end of the last, and what else lies between.
    pub(crate) fn span_bytes(&self) -> &[u8] {
        let size = self.dtype().size();
        // Cannot overflow: the invariant puts every element within the storage.
        let span = layout::span(&self.shape, &self.strides).unwrap_or(0);
        &self.storage.bytes()[self.start * size..(self.start + span) * size]
    }

    pub(crate) fn shared_shape(&self) -> &Arc<[usize]> {
        &self.shape
    }

    /// The memory, if it is this tensor's alone and holds nothing else than its elements in order.
    pub(crate) fn into_whole_storage(mut self) -> Option<Arc<Storage>> {
        let whole = self.start == 0 && self.len() == self.storage.len() && self.is_contiguous();
        (whole && Arc::get_mut(&mut self.storage).is_some()).then_some(self.storage)
    }

    /// The elements from the first to the end of the last, and what else lies between.
    #[cfg(feature = "ndarray")]
    pub(crate) fn span_elements<T: Element>(&self) -> Result<&[T], TensorError> {
        let span = layout::span(&self.shape, &self.strides).unwrap_or(0);
        Ok(&self.elements::<T>()?[self.start..self.start + span])
    }

    fn elements<T: Element>(&self) -> Result<&[T], TensorError> {
        T::elements(&self.storage).ok_or(TensorError::Dtype { expected: T::DTYPE, found: self.dtype() })
    }

    /// Every element in row-major order, converted. `T` must be the element type.
    fn gather<T: Element, U>(&self, convert: impl Fn(T) -> U) -> Vec<U> {
        // Nothing comes of a wrong `T`, which no caller asks for.
        self.iter::<T>().map(|elements| elements.map(convert).collect()).unwrap_or_default()
    }

    fn not_contiguous(&self) -> TensorError {
        TensorError::NotContiguous { shape: self.shape.to_vec(), strides: self.strides.to_vec() }
    }
}

/// `bytes` as a vector of their own element type; their number must be a multiple of its size.
fn copied(dtype: Dtype, bytes: &[u8], shape: &[usize]) -> Result<Storage, TensorError> {
    let mut storage = Storage::zeroed(dtype, bytes.len() / dtype.size(), shape)?;
    storage.bytes_mut().copy_from_slice(bytes);
    Ok(storage)
}

/// Same element type, shape and elements; strides do not matter. NaN equals nothing, as ever.
impl PartialEq for Tensor {
    fn eq(&self, other: &Tensor) -> bool {
        if self.dtype() != other.dtype() || self.shape != other.shape {
            return false;
        }
        with_element!(self.dtype(), T => match (self.iter::<T>(), other.iter::<T>()) {
            (Ok(ours), Ok(theirs)) => ours.eq(theirs),
            _ => false,
        })
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        let mut debug = f.debug_struct("Tensor");
        debug.field("dtype", &self.dtype()).field("shape", &self.shape);
        if !self.is_contiguous() {
            debug.field("strides", &self.strides);
        }
        with_element!(self.dtype(), T => {
            let elements: Vec<T> = self.iter::<T>().map(|all| all.take(SHOWN).collect()).unwrap_or_default();
            debug.field(if self.len() > SHOWN { "first" } else { "elements" }, &elements);
        });
        debug.finish()
    }
}

/// The elements of a tensor in row-major order; see [`Tensor::iter`].
#[derive(Clone, Debug)]
pub struct Elements<'a, T>(Walk<'a, T>);

#[derive(Clone, Debug)]
enum Walk<'a, T> {
    Dense(core::slice::Iter<'a, T>),
    Strided(&'a [T], layout::Offsets<'a>),
}

impl<T: Element> Iterator for Elements<'_, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        match &mut self.0 {
            Walk::Dense(elements) => elements.next().copied(),
            Walk::Strided(elements, offsets) => offsets.next().map(|offset| elements[offset]),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        match &self.0 {
            Walk::Dense(elements) => elements.size_hint(),
            Walk::Strided(_, offsets) => offsets.size_hint(),
        }
    }
}

impl<T: Element> ExactSizeIterator for Elements<'_, T> {}
