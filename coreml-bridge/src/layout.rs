//! Shapes and strides: pure arithmetic on lists of dimensions, every step checked.

use crate::tensor::TensorError;

/// How many elements a tensor of `shape` has.
pub(crate) fn count(shape: &[usize]) -> Result<usize, TensorError> {
    // A zero anywhere makes the product zero, also when the rest would overflow.
    if shape.contains(&0) {
        return Ok(0);
    }
    shape
        .iter()
        .try_fold(1_usize, |product, &dimension| product.checked_mul(dimension))
        .ok_or_else(|| TensorError::TooLarge { shape: shape.to_vec() })
}

/// How many bytes a dense tensor has; never more than a Rust allocation may hold.
pub(crate) fn byte_len(shape: &[usize], element: usize) -> Result<usize, TensorError> {
    count(shape)?
        .checked_mul(element)
        .filter(|&bytes| isize::try_from(bytes).is_ok())
        .ok_or_else(|| TensorError::TooLarge { shape: shape.to_vec() })
}

/// Strides, in elements, of a dense row-major tensor.
pub(crate) fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    let mut step = 1_usize;
    for (stride, &dimension) in strides.iter_mut().zip(shape).rev() {
        *stride = step;
        // Only an empty tensor can overflow here, and its strides are never used.
        step = step.saturating_mul(dimension.max(1));
    }
    strides
}

/// Whether the elements lie one after the other in row-major order. Strides of dimensions of one do not matter.
pub(crate) fn is_row_major(shape: &[usize], strides: &[usize]) -> bool {
    if shape.contains(&0) {
        return true;
    }
    let mut step = 1;
    for (&dimension, &stride) in shape.iter().zip(strides).rev() {
        if dimension != 1 {
            if stride != step {
                return false;
            }
            step *= dimension;
        }
    }
    true
}

/// How many elements lie between the first and the end of the last; 0 for an empty tensor, `None` on overflow.
pub(crate) fn span(shape: &[usize], strides: &[usize]) -> Option<usize> {
    if shape.contains(&0) {
        return Some(0);
    }
    let last = shape.iter().zip(strides).try_fold(0_usize, |last, (&dimension, &stride)| {
        last.checked_add(stride.checked_mul(dimension - 1)?)
    })?;
    last.checked_add(1)
}

/// Whether no two indices name the same element. Sufficient, not necessary: true for everything that slicing,
/// padding and permuting a dense tensor can make.
pub(crate) fn is_injective(shape: &[usize], strides: &[usize]) -> bool {
    let mut dimensions: Vec<(usize, usize)> =
        strides.iter().copied().zip(shape.iter().copied()).filter(|&(_, dimension)| dimension > 1).collect();
    dimensions.sort_unstable();
    let mut least = 1;
    dimensions.into_iter().all(|(stride, dimension)| {
        let fits = stride >= least;
        least = stride.saturating_mul(dimension - 1).saturating_add(least);
        fits
    })
}

/// Offsets, in elements, of a tensor's elements in row-major order of their indices.
#[derive(Clone, Debug)]
pub(crate) struct Offsets<'a> {
    shape: &'a [usize],
    strides: &'a [usize],
    index: Vec<usize>,
    offset: usize,
    left: usize,
}

impl<'a> Offsets<'a> {
    /// The shape and strides must have passed [`span`], so that no offset overflows.
    pub(crate) fn new(shape: &'a [usize], strides: &'a [usize], start: usize) -> Self {
        let left = if shape.contains(&0) { 0 } else { shape.iter().product() };
        Self { shape, strides, index: vec![0; shape.len()], offset: start, left }
    }
}

impl Iterator for Offsets<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        self.left = self.left.checked_sub(1)?;
        let offset = self.offset;
        for axis in (0..self.index.len()).rev() {
            self.index[axis] += 1;
            if self.index[axis] < self.shape[axis] {
                // Wrapping, for after the last element the offset may point anywhere; it is not used then.
                self.offset = self.offset.wrapping_add(self.strides[axis]);
                break;
            }
            self.index[axis] = 0;
            self.offset = self.offset.wrapping_sub(self.strides[axis].wrapping_mul(self.shape[axis] - 1));
        }
        Some(offset)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Offsets<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zero_dimension_makes_any_shape_empty_without_overflow() {
        assert_eq!(count(&[usize::MAX, 0, usize::MAX]).unwrap(), 0);
        assert!(is_row_major(&[3, 0], &[7, 9]));
        assert_eq!(span(&[3, 0], &[usize::MAX, 1]), Some(0));
    }

    #[test]
    fn products_that_overflow_are_refused() {
        assert!(matches!(count(&[usize::MAX, 2]), Err(TensorError::TooLarge { .. })));
        assert!(matches!(byte_len(&[isize::MAX as usize], 4), Err(TensorError::TooLarge { .. })));
        assert_eq!(span(&[3, 2], &[usize::MAX, 1]), None);
    }

    #[test]
    fn offsets_follow_the_strides_in_row_major_order() {
        let padded: Vec<_> = Offsets::new(&[2, 3], &[16, 1], 4).collect();
        assert_eq!(padded, [4, 5, 6, 20, 21, 22]);
        let transposed: Vec<_> = Offsets::new(&[3, 2], &[1, 3], 0).collect();
        assert_eq!(transposed, [0, 3, 1, 4, 2, 5]);
        assert_eq!(Offsets::new(&[], &[], 9).collect::<Vec<_>>(), [9]);
        assert_eq!(Offsets::new(&[2, 0], &[1, 1], 0).len(), 0);
    }

    #[test]
    fn padded_and_permuted_layouts_are_injective_and_broadcast_ones_are_not() {
        assert!(is_injective(&[2, 3], &[16, 1]));
        assert!(is_injective(&[3, 2], &[1, 3]));
        assert!(is_injective(&[1, 4], &[0, 1]));
        assert!(!is_injective(&[2, 3], &[0, 1]));
        assert!(!is_injective(&[4, 4], &[1, 1]));
    }
}
