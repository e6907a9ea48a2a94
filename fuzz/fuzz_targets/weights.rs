//! A weight file never panics, and never gives bytes that are not in it. The first 8 bytes are the offset to ask for.
#![no_main]

use coreml_engine::DType;
use coreml_engine::weights::WeightFile;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((offset, file)) = data.split_first_chunk::<8>() else { return };
    let Ok(weights) = WeightFile::new(file.to_vec().into()) else { return };
    for dtype in [DType::F16, DType::F32, DType::U8, DType::I8, DType::I32, DType::U4] {
        for offset in [u64::from_le_bytes(*offset), 64] {
            if let Ok(blob) = weights.blob(offset, dtype) {
                assert!(blob.len() <= file.len());
            }
        }
    }
});
