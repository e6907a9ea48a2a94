//! The windows of convolution and pooling: how many there are along an axis and where each begins.
//!
//! Semantics: coremltools, `mil/ops/defs/_utils.py`, `aggregated_pad` and `spatial_dimensions_out_shape`.

use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{KernelError, OpError};
use crate::ops::{OpBuilder, parameter};

/// `pad_type` with `pad`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Padding {
    /// None.
    Valid,
    /// As many windows as strides fit the input; what is odd goes to the end.
    Same,
    /// As `Same`; what is odd goes to the beginning.
    SameLower,
    /// Before and after each axis.
    Custom(Vec<(usize, usize)>),
}

impl Padding {
    /// Reads `pad_type` and `pad`. Only `custom` heeds `pad`: coremltools writes it with the others too.
    pub(crate) fn read(op: &mut OpBuilder<'_>, default: &str, rank: usize) -> Result<Self, OpError> {
        let kind = op.string("pad_type", default)?;
        let pad = op.ints_opt("pad")?;
        match &*kind {
            "valid" => Ok(Self::Valid),
            "same" => Ok(Self::Same),
            "same_lower" => Ok(Self::SameLower),
            "custom" => Self::custom(pad.as_deref(), rank).map(Self::Custom),
            other => Err(parameter(
                "pad_type",
                format!("expected `valid`, `same`, `same_lower` or `custom`, found `{other}`"),
            )),
        }
    }

    fn custom(pad: Option<&[i32]>, rank: usize) -> Result<Vec<(usize, usize)>, OpError> {
        let Some(pad) = pad else { return Ok(vec![(0, 0); rank]) };
        if pad.len() != 2 * rank {
            return Err(parameter("pad", format!("expected {} amounts, found {}", 2 * rank, pad.len())));
        }
        let amounts = pad.as_chunks::<2>().0.iter();
        amounts
            .map(|&[before, after]| Some((usize::try_from(before).ok()?, usize::try_from(after).ok()?)))
            .collect::<Option<_>>()
            .ok_or_else(|| parameter("pad", format!("expected no negative amount, found {pad:?}")))
    }
}

/// One number per spatial axis that must be 1 or more (`strides`, `dilations`, `kernel_sizes`).
pub(crate) fn positive(
    op: &mut OpBuilder<'_>,
    name: &'static str,
    rank: usize,
) -> Result<Option<Vec<usize>>, OpError> {
    let Some(values) = op.ints_opt(name)? else { return Ok(None) };
    if values.len() != rank {
        return Err(parameter(name, format!("expected {rank} numbers, found {}", values.len())));
    }
    values
        .iter()
        .map(|&v| usize::try_from(v).ok().filter(|&v| v > 0))
        .collect::<Option<Vec<_>>>()
        .map(Some)
        .ok_or_else(|| parameter(name, format!("expected 1 or more, found {values:?}")))
}

/// The extent of a window and how it moves along one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    pub(crate) dilation: usize,
}

impl Step {
    /// An axis that is not there.
    pub(crate) const ONE: Self = Self { kernel: 1, stride: 1, dilation: 1 };

    /// Elements from the first to the last of a window.
    pub(crate) fn extent(self) -> Option<usize> {
        self.kernel.checked_sub(1)?.checked_mul(self.dilation)?.checked_add(1)
    }
}

/// The windows along one axis of a given length. Window `i` covers the elements `i * stride + t * dilation - before` for `t` in
/// `0..kernel`; those outside `0..input` are padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Axis {
    pub(crate) input: usize,
    pub(crate) output: usize,
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    pub(crate) dilation: usize,
    pub(crate) before: usize,
    pub(crate) after: usize,
}

impl Axis {
    /// An axis that is not there.
    pub(crate) const ONE: Self =
        Self { input: 1, output: 1, kernel: 1, stride: 1, dilation: 1, before: 0, after: 0 };

    /// The windows along axis `index`, of `input` elements.
    pub(crate) fn new(
        padding: &Padding,
        index: usize,
        input: usize,
        step: Step,
        ceil: bool,
    ) -> Result<Self, KernelError> {
        let Step { kernel, stride, dilation } = step;
        let place = || Self::place(padding, index, input, step, ceil);
        let (before, after, output) = place().ok_or_else(|| {
            KernelError::shape(format!(
                "no window of {kernel} elements (stride {stride}, dilation {dilation}) fits {input} elements with padding {padding:?}"
            ))
        })?;
        Ok(Self { input, output, kernel, stride, dilation, before, after })
    }

    fn place(
        padding: &Padding,
        index: usize,
        input: usize,
        step: Step,
        ceil: bool,
    ) -> Option<(usize, usize, usize)> {
        let extent = step.extent()?;
        let (before, after) = match padding {
            Padding::Valid => (0, 0),
            Padding::Same | Padding::SameLower => {
                let covered = input.div_ceil(step.stride).checked_mul(step.stride)?.checked_add(extent)?;
                let total = covered.saturating_sub(input.checked_add(step.stride)?);
                let less = total / 2;
                if *padding == Padding::Same { (less, total - less) } else { (total - less, less) }
            }
            Padding::Custom(amounts) => *amounts.get(index)?,
        };
        let total = before.checked_add(after)?;
        let room = input.checked_add(total)?.checked_sub(extent)?;
        let mut output = if ceil { room.div_ceil(step.stride) } else { room / step.stride } + 1;
        // The last window must begin inside the input or the padding before it, as in Caffe; only where there is padding.
        if ceil && total > 0 && (output - 1).checked_mul(step.stride)? >= input.checked_add(total / 2)? {
            output -= 1;
        }
        // Every position of every window is a number.
        output.checked_mul(step.stride)?.checked_add(extent)?;
        (output > 0).then_some((before, after, output))
    }

    /// Range of windows whose element `tap` is not padding.
    pub(crate) fn inside(&self, tap: usize) -> std::ops::Range<usize> {
        let offset = tap * self.dilation;
        let first = self.before.saturating_sub(offset).div_ceil(self.stride).min(self.output);
        let end = (self.input + self.before).saturating_sub(offset).div_ceil(self.stride).min(self.output);
        first..end.max(first)
    }

    /// Whether the windows are the elements themselves.
    pub(crate) fn is_identity(&self) -> bool {
        self.kernel == 1 && self.stride == 1 && self.before == 0 && self.after == 0
    }
}

/// Something computed from the shape of the input, kept until another shape comes.
#[derive(Debug)]
pub(crate) struct PerShape<T> {
    last: Mutex<Option<(Vec<usize>, Arc<T>)>>,
}

impl<T> PerShape<T> {
    pub(crate) fn new() -> Self {
        Self { last: Mutex::new(None) }
    }

    /// The value for `shape`, by `make` if the last one was for another shape.
    pub(crate) fn of(
        &self,
        shape: &[usize],
        make: impl FnOnce() -> Result<T, KernelError>,
    ) -> Result<Arc<T>, KernelError> {
        // The value is never changed in place, so a panic elsewhere cannot have left it half made.
        let lock = || self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((key, value)) = &*lock()
            && key == shape
        {
            return Ok(Arc::clone(value));
        }
        let value = Arc::new(make()?);
        *lock() = Some((shape.to_vec(), Arc::clone(&value)));
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(
        padding: &Padding,
        input: usize,
        kernel: usize,
        stride: usize,
        dilation: usize,
        ceil: bool,
    ) -> Option<(usize, usize, usize)> {
        Axis::place(padding, 0, input, Step { kernel, stride, dilation }, ceil)
    }

    #[test]
    fn sizes_are_those_of_coremltools() {
        // From `spatial_dimensions_out_shape` of coremltools 9.0.
        assert_eq!(place(&Padding::Valid, 7, 3, 2, 1, false), Some((0, 0, 3)));
        assert_eq!(place(&Padding::Valid, 8, 3, 2, 1, false), Some((0, 0, 3)));
        assert_eq!(place(&Padding::Valid, 8, 3, 2, 1, true), Some((0, 0, 4)));
        assert_eq!(place(&Padding::Same, 8, 3, 2, 1, false), Some((0, 1, 4)));
        assert_eq!(place(&Padding::SameLower, 8, 3, 2, 1, false), Some((1, 0, 4)));
        assert_eq!(place(&Padding::Same, 5, 3, 1, 2, false), Some((2, 2, 5)));
        assert_eq!(place(&Padding::Same, 5, 1, 3, 1, false), Some((0, 0, 2)));
        assert_eq!(place(&Padding::Custom(vec![(1, 1)]), 4, 2, 4, 1, true), Some((1, 1, 2)));
        // Without the correction the last window would begin at 6, in the padding.
        assert_eq!(place(&Padding::Custom(vec![(1, 1)]), 5, 1, 2, 1, true), Some((1, 1, 3)));
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        assert_eq!(place(&Padding::Valid, 2, 3, 1, 1, false), None);
        assert_eq!(place(&Padding::Valid, 2, usize::MAX, 1, usize::MAX, false), None);
        assert_eq!(place(&Padding::Custom(vec![(usize::MAX, 1)]), 2, 1, 1, 1, false), None);
        assert_eq!(place(&Padding::Same, 0, 3, 1, 1, false), None);
    }

    #[test]
    fn the_windows_inside_are_those_that_read_the_input() {
        for input in 1..9 {
            for (kernel, stride, dilation, before, after) in
                [(3, 1, 1, 1, 1), (3, 2, 1, 0, 1), (2, 3, 2, 2, 2), (4, 1, 2, 3, 0)]
            {
                let padding = Padding::Custom(vec![(before, after)]);
                let Ok(axis) = Axis::new(&padding, 0, input, Step { kernel, stride, dilation }, false) else {
                    continue;
                };
                for tap in 0..kernel {
                    let reads = |i: usize| (before..before + input).contains(&(i * stride + tap * dilation));
                    for i in 0..axis.output {
                        assert_eq!(axis.inside(tap).contains(&i), reads(i), "{axis:?} tap {tap} window {i}");
                    }
                }
            }
        }
    }
}
