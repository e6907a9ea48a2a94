//! Conversions between tensors and `ndarray` arrays.

use ndarray::{Array, ArrayD, ArrayViewD, Dimension, IxDyn, ShapeBuilder};

use crate::{Element, Tensor, TensorError};

/// Takes the array's memory if it is dense and row-major, else copies it.
///
/// ```
/// use coreml_bridge::Tensor;
/// use ndarray::array;
///
/// let tensor = Tensor::from(array![[1_i32, 2], [3, 4]]);
/// assert_eq!((tensor.shape(), tensor.as_slice::<i32>()?), (&[2, 2][..], &[1, 2, 3, 4][..]));
/// # Ok::<(), coreml_bridge::TensorError>(())
/// ```
impl<T: Element, D: Dimension> From<Array<T, D>> for Tensor {
    fn from(array: Array<T, D>) -> Self {
        let shape = array.shape().to_vec();
        let elements = if array.is_standard_layout() {
            let count = array.len();
            let (mut elements, offset) = array.into_raw_vec_and_offset();
            let start = offset.unwrap_or(0);
            // A sliced array keeps the memory it was cut from.
            elements.truncate(start + count);
            elements.drain(..start);
            elements
        } else {
            array.iter().copied().collect()
        };
        // The number of elements is the array's own.
        Tensor::dense(&shape, T::into_storage(elements))
    }
}

/// A copy of the elements; fails if they are not `T`.
///
/// ```
/// use coreml_bridge::Tensor;
/// use ndarray::ArrayD;
///
/// let array = ArrayD::<f32>::try_from(&Tensor::from_vec(&[2, 1], vec![1.0_f32, 2.0])?)?;
/// assert_eq!(array[[1, 0]], 2.0);
/// # Ok::<(), coreml_bridge::TensorError>(())
/// ```
impl<T: Element> TryFrom<&Tensor> for ArrayD<T> {
    type Error = TensorError;

    fn try_from(tensor: &Tensor) -> Result<Self, TensorError> {
        let elements = tensor.to_vec::<T>()?;
        let found = elements.len();
        ArrayD::from_shape_vec(IxDyn(tensor.shape()), elements).map_err(|_| TensorError::Length {
            shape: tensor.shape().to_vec(),
            expected: tensor.len(),
            found,
        })
    }
}

impl Tensor {
    /// The elements as an `ndarray` view, wherever they lie, without a copy.
    ///
    /// # Errors
    /// [`TensorError::Dtype`] if the elements are not `T`.
    ///
    /// ```
    /// use coreml_bridge::Tensor;
    ///
    /// let rows = Tensor::from_vec(&[2, 3], vec![1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0])?;
    /// assert_eq!(rows.permute(&[1, 0])?.view::<f32>()?[[2, 1]], 6.0);
    /// # Ok::<(), coreml_bridge::TensorError>(())
    /// ```
    pub fn view<T: Element>(&self) -> Result<ArrayViewD<'_, T>, TensorError> {
        let elements = self.span_elements::<T>()?;
        let form = IxDyn(self.shape()).strides(IxDyn(self.strides()));
        ArrayViewD::from_shape(form, elements).map_err(|_| TensorError::OutOfBounds {
            shape: self.shape().to_vec(),
            strides: self.strides().to_vec(),
            available: elements.len(),
        })
    }
}
