//! Images: owned pixels in the formats that Core ML takes.

use core::fmt;
use std::sync::Arc;

use coreml_sys::{CML_PIXEL_BGRA8, CML_PIXEL_GRAY8, CML_PIXEL_GRAY16F, CmlPixelFormat};
use half::f16;
use thiserror::Error;

/// Why an image cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The pixels are too few or too many.
    #[error("an image of {width} x {height} pixels has {expected} values, not {found}")]
    Length {
        /// Pixels in a row.
        width: u32,
        /// Rows.
        height: u32,
        /// How many bytes (or half-precision numbers) the pixels take.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// A side of an image is never 0.
    #[error("an image cannot be {width} x {height} pixels")]
    Empty {
        /// Pixels in a row.
        width: u32,
        /// Rows.
        height: u32,
    },
    /// The pixels do not fit in memory.
    #[error("an image of {width} x {height} pixels does not fit in memory")]
    TooLarge {
        /// Pixels in a row.
        width: u32,
        /// Rows.
        height: u32,
    },
}

/// How a pixel is stored: CoreVideo's formats that Core ML knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PixelFormat {
    /// Blue, green, red, alpha, one byte each (`BGRA`). Models ignore alpha.
    Bgra8,
    /// One byte of grey (`L008`).
    Gray8,
    /// One half-precision number of grey (`L00h`).
    Gray16F,
}

impl PixelFormat {
    /// Bytes of one pixel.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            PixelFormat::Bgra8 => 4,
            PixelFormat::Gray8 => 1,
            PixelFormat::Gray16F => 2,
        }
    }

    /// The four-character code that stands for this format in the table.
    #[must_use]
    pub const fn to_native(self) -> CmlPixelFormat {
        match self {
            PixelFormat::Bgra8 => CML_PIXEL_BGRA8,
            PixelFormat::Gray8 => CML_PIXEL_GRAY8,
            PixelFormat::Gray16F => CML_PIXEL_GRAY16F,
        }
    }

    /// The format that a four-character code stands for, if it is known.
    #[must_use]
    pub const fn from_native(code: CmlPixelFormat) -> Option<PixelFormat> {
        match code {
            CML_PIXEL_BGRA8 => Some(PixelFormat::Bgra8),
            CML_PIXEL_GRAY8 => Some(PixelFormat::Gray8),
            CML_PIXEL_GRAY16F => Some(PixelFormat::Gray16F),
            _ => None,
        }
    }
}

impl fmt::Display for PixelFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            PixelFormat::Bgra8 => "BGRA, 8 bits",
            PixelFormat::Gray8 => "grey, 8 bits",
            PixelFormat::Gray16F => "grey, float16",
        })
    }
}

/// An image: rows of pixels from the top, without padding. Owned and counted, as a [`Tensor`](crate::Tensor) is.
///
/// ```
/// use coreml_bridge::{Image, PixelFormat};
///
/// let red = Image::from_rgb(1, 2, &[255, 0, 0, 255, 0, 0])?;
/// assert_eq!((red.format(), red.width(), red.height()), (PixelFormat::Bgra8, 1, 2));
/// assert_eq!(red.bytes(), [0, 0, 255, 255, 0, 0, 255, 255]);
/// # Ok::<(), coreml_bridge::ImageError>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Image {
    format: PixelFormat,
    width: u32,
    height: u32,
    /// `width * height * format.size()` bytes.
    bytes: Arc<Vec<u8>>,
}

impl Image {
    /// Colour, as Core ML keeps it; takes the bytes without a copy.
    ///
    /// # Errors
    /// [`ImageError`] if a side is 0 or the length is not `width * height * 4`.
    pub fn from_bgra(width: u32, height: u32, bytes: Vec<u8>) -> Result<Image, ImageError> {
        Self::on(PixelFormat::Bgra8, width, height, bytes)
    }

    /// Colour from red, green, blue, alpha.
    ///
    /// # Errors
    /// [`ImageError`] if a side is 0 or the length is not `width * height * 4`.
    pub fn from_rgba(width: u32, height: u32, bytes: &[u8]) -> Result<Image, ImageError> {
        checked_len(width, height, 4, bytes.len())?;
        let (pixels, _) = bytes.as_chunks::<4>();
        let bytes = pixels.iter().flat_map(|&[red, green, blue, alpha]| [blue, green, red, alpha]).collect();
        Self::on(PixelFormat::Bgra8, width, height, bytes)
    }

    /// Opaque colour from red, green, blue.
    ///
    /// # Errors
    /// [`ImageError`] if a side is 0 or the length is not `width * height * 3`.
    pub fn from_rgb(width: u32, height: u32, bytes: &[u8]) -> Result<Image, ImageError> {
        checked_len(width, height, 3, bytes.len())?;
        let (pixels, _) = bytes.as_chunks::<3>();
        let bytes = pixels.iter().flat_map(|&[red, green, blue]| [blue, green, red, u8::MAX]).collect();
        Self::on(PixelFormat::Bgra8, width, height, bytes)
    }

    /// Grey of 8 bits; takes the bytes without a copy.
    ///
    /// # Errors
    /// [`ImageError`] if a side is 0 or the length is not `width * height`.
    pub fn from_gray(width: u32, height: u32, bytes: Vec<u8>) -> Result<Image, ImageError> {
        Self::on(PixelFormat::Gray8, width, height, bytes)
    }

    /// Grey of half precision.
    ///
    /// # Errors
    /// [`ImageError`] if a side is 0 or the length is not `width * height`.
    pub fn from_gray16f(width: u32, height: u32, pixels: &[f16]) -> Result<Image, ImageError> {
        checked_len(width, height, 1, pixels.len())?;
        Self::on(PixelFormat::Gray16F, width, height, bytemuck::cast_slice(pixels).to_vec())
    }

    /// An image on row-dense bytes of any format.
    ///
    /// # Errors
    /// [`ImageError`] if a side is 0 or the length is not `width * height * format.size()`.
    pub fn on(format: PixelFormat, width: u32, height: u32, bytes: Vec<u8>) -> Result<Image, ImageError> {
        checked_len(width, height, format.size(), bytes.len())?;
        Ok(Image { format, width, height, bytes: Arc::new(bytes) })
    }

    /// How a pixel is stored.
    #[must_use]
    pub fn format(&self) -> PixelFormat {
        self.format
    }

    /// Pixels in a row.
    #[must_use]
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Rows.
    #[must_use]
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Bytes of a row.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        self.bytes.len() / self.height as usize
    }

    /// The pixels, row after row from the top.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The pixels as red, green, blue, alpha, one byte each. Grey is opaque; half-precision grey is taken as 0 to 1,
    /// what lies beyond is clamped, NaN is black.
    #[must_use]
    pub fn to_rgba(&self) -> Vec<u8> {
        match self.format {
            PixelFormat::Bgra8 => {
                let (pixels, _) = self.bytes.as_chunks::<4>();
                pixels.iter().flat_map(|&[blue, green, red, alpha]| [red, green, blue, alpha]).collect()
            }
            PixelFormat::Gray8 => self.bytes.iter().flat_map(|&gray| [gray, gray, gray, u8::MAX]).collect(),
            PixelFormat::Gray16F => {
                let (pixels, _) = self.bytes.as_chunks::<2>();
                let grays = pixels.iter().map(|&pixel| f16::from_ne_bytes(pixel).to_f32());
                // `as` saturates, and takes NaN to 0.
                grays
                    .map(|gray| (gray.clamp(0.0, 1.0) * 255.0).round() as u8)
                    .flat_map(|gray| [gray, gray, gray, u8::MAX])
                    .collect()
            }
        }
    }
}

fn checked_len(width: u32, height: u32, values: usize, found: usize) -> Result<(), ImageError> {
    if width == 0 || height == 0 {
        return Err(ImageError::Empty { width, height });
    }
    let expected =
        (width as usize).checked_mul(height as usize).and_then(|pixels| pixels.checked_mul(values));
    let expected = expected.ok_or(ImageError::TooLarge { width, height })?;
    if expected == found { Ok(()) } else { Err(ImageError::Length { width, height, expected, found }) }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Image({} x {}, {})", self.width, self.height, self.format)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_survives_the_way_there_and_back() {
        let rgba = [1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(Image::from_rgba(2, 1, &rgba).unwrap().to_rgba(), rgba);
    }

    #[test]
    fn half_precision_grey_is_clamped_and_nan_is_black() {
        let pixels = [-1.0, 0.0, 0.5, 7.0, f32::NAN].map(f16::from_f32);
        let grays: Vec<u8> =
            Image::from_gray16f(5, 1, &pixels).unwrap().to_rgba().chunks(4).map(|pixel| pixel[0]).collect();
        assert_eq!(grays, [0, 0, 128, 255, 0]);
    }

    #[test]
    fn wrong_lengths_and_empty_sides_are_refused() {
        assert_eq!(Image::from_gray(0, 3, vec![]), Err(ImageError::Empty { width: 0, height: 3 }));
        let error = ImageError::Length { width: 2, height: 2, expected: 12, found: 11 };
        assert_eq!(Image::from_rgb(2, 2, &[0; 11]), Err(error));
    }
}
