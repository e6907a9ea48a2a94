//! The numbers of the table are the contract, and equal Apple's: `MLComputeUnits`, `MLMultiArrayDataType`,
//! `MLFeatureType` and CoreVideo's four-character codes.

use coreml_sys::*;

#[test]
fn compute_units_have_apples_numbers() {
    let numbers =
        [CML_COMPUTE_CPU_ONLY, CML_COMPUTE_CPU_AND_GPU, CML_COMPUTE_ALL, CML_COMPUTE_CPU_AND_NEURAL_ENGINE];
    assert_eq!(numbers, [0, 1, 2, 3]);
}

#[test]
fn hints_have_apples_numbers() {
    assert_eq!([CML_RESHAPE_FREQUENT, CML_RESHAPE_INFREQUENT], [0, 1]);
    assert_eq!([CML_SPECIALIZATION_DEFAULT, CML_SPECIALIZATION_FAST_PREDICTION], [0, 1]);
}

#[test]
fn dtypes_have_apples_numbers() {
    assert_eq!(CML_DTYPE_FLOAT16, 0x10000 | 16);
    assert_eq!(CML_DTYPE_FLOAT32, 0x10000 | 32);
    assert_eq!(CML_DTYPE_FLOAT64, 0x10000 | 64);
    assert_eq!(CML_DTYPE_INT8, 0x20000 | 8);
    assert_eq!(CML_DTYPE_INT32, 0x20000 | 32);
}

#[test]
fn kinds_have_apples_numbers() {
    let numbers = [
        CML_KIND_INVALID,
        CML_KIND_INT64,
        CML_KIND_DOUBLE,
        CML_KIND_STRING,
        CML_KIND_IMAGE,
        CML_KIND_TENSOR,
        CML_KIND_DICTIONARY,
        CML_KIND_SEQUENCE,
    ];
    assert_eq!(numbers, [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn pixel_formats_are_core_videos_four_character_codes() {
    assert_eq!(CML_PIXEL_BGRA8, u32::from_be_bytes(*b"BGRA"));
    assert_eq!(CML_PIXEL_GRAY8, u32::from_be_bytes(*b"L008"));
    assert_eq!(CML_PIXEL_GRAY16F, u32::from_be_bytes(*b"L00h"));
}

#[test]
fn the_head_of_the_table_never_moves() {
    assert_eq!(core::mem::offset_of!(CmlBridge, abi_version), 0);
    assert_eq!(core::mem::offset_of!(CmlBridge, struct_size), 4);
    assert_eq!(core::mem::offset_of!(CmlBridge, self_), 8);
}

#[test]
fn a_string_borrows_its_text_and_none_is_empty() {
    let text = String::from("probabilities");
    let borrowed = CmlStr::from(text.as_str());
    // SAFETY: `text` outlives the use.
    assert_eq!(unsafe { borrowed.as_bytes() }, text.as_bytes());
    // SAFETY: none is null.
    assert!(unsafe { CmlStr::NONE.as_bytes() }.is_empty());
}
