//! The weight file of an ML program (`weight.bin`).
//!
//! A 64-byte header `{u32 count, u32 version = 2}`, then per blob 64 bytes of metadata
//! `{u32 0xDEADBEEF, u32 dtype, u64 bytes, u64 data offset, u64 padding bits}`, all little-endian and 64-aligned.
//! A program names a blob by the offset of its metadata. (Layout: coremltools, `MILBlob/Blob/StorageFormat.hpp`.)

use crate::SharedBytes;
use crate::types::DType;

const SENTINEL: u32 = 0xDEAD_BEEF;
const HEADER: usize = 64;
const METADATA: usize = 64;

/// A weight file that has the header of one.
#[derive(Clone, Debug)]
pub struct WeightFile {
    bytes: SharedBytes,
}

/// Why a weight file, or a blob of it, is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightError {
    /// Shorter than its header.
    #[error("the weight file has {0} bytes, less than its header of {HEADER}")]
    Truncated(usize),
    /// Another version of the format.
    #[error("the weight file has version {0}, expected 2")]
    Version(u32),
    /// A blob lies outside the file.
    #[error("the blob at offset {offset} ({what}) reaches beyond the weight file of {length} bytes")]
    OutOfBounds {
        /// Of its metadata.
        offset: u64,
        /// `metadata` or `data`.
        what: &'static str,
        /// Of the file.
        length: usize,
    },
    /// No blob begins there.
    #[error("no blob begins at offset {offset} of the weight file")]
    NotABlob {
        /// The offset.
        offset: u64,
    },
    /// The blob holds another type than the program says.
    #[error("the blob at offset {offset} has type number {found}, the program says {expected}")]
    WrongType {
        /// Of its metadata.
        offset: u64,
        /// The type in the program.
        expected: DType,
        /// The number in the file.
        found: u32,
    },
}

impl WeightFile {
    /// Checks the header.
    ///
    /// # Errors
    /// [`WeightError::Truncated`], [`WeightError::Version`].
    ///
    /// ```
    /// use coreml_engine::weights::{WeightError, WeightFile};
    /// let error = WeightFile::new(vec![0_u8; 10].into()).unwrap_err();
    /// assert!(matches!(error, WeightError::Truncated(10)));
    /// ```
    pub fn new(bytes: SharedBytes) -> Result<Self, WeightError> {
        if bytes.len() < HEADER {
            return Err(WeightError::Truncated(bytes.len()));
        }
        match u32_at(&bytes, 4) {
            Some(2) => Ok(Self { bytes }),
            version => Err(WeightError::Version(version.unwrap_or(0))),
        }
    }

    /// The data of the blob whose metadata lies at `offset`, which must be of type `dtype`.
    ///
    /// # Errors
    /// If there is no such blob, or its data is not all in the file. No memory is allocated.
    pub fn blob(&self, offset: u64, dtype: DType) -> Result<SharedBytes, WeightError> {
        let out = |what| WeightError::OutOfBounds { offset, what, length: self.bytes.len() };
        let start = usize::try_from(offset).map_err(|_| out("metadata"))?;
        let end = start.checked_add(METADATA).ok_or_else(|| out("metadata"))?;
        let metadata = self.bytes.get(start..end).ok_or_else(|| out("metadata"))?;
        if u32_at(metadata, 0) != Some(SENTINEL) {
            return Err(WeightError::NotABlob { offset });
        }
        let found = u32_at(metadata, 4).unwrap_or(0);
        if file_number(dtype) != Some(found) {
            return Err(WeightError::WrongType { offset, expected: dtype, found });
        }
        let field = |at| u64_at(metadata, at).and_then(|x| usize::try_from(x).ok());
        let (Some(length), Some(data)) = (field(8), field(16)) else { return Err(out("data")) };
        let end = data.checked_add(length).ok_or_else(|| out("data"))?;
        self.bytes.slice(data..end).ok_or_else(|| out("data"))
    }
}

/// The number of a type in a weight file.
fn file_number(dtype: DType) -> Option<u32> {
    Some(match dtype {
        DType::F16 => 1,
        DType::F32 => 2,
        DType::U8 | DType::Bool => 3,
        DType::I8 => 4,
        DType::I16 => 6,
        DType::U16 => 7,
        DType::I4 => 8,
        DType::U1 => 9,
        DType::U2 => 10,
        DType::U4 => 11,
        DType::U3 => 12,
        DType::U6 => 13,
        DType::I32 => 14,
        DType::U32 => 15,
        DType::F64 | DType::I64 | DType::String => return None,
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}
