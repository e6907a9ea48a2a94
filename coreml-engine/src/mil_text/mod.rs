//! The text of a compiled ML program (`model.mil`), from and to the message that the same program has in a package.
//!
//! Apple does not document the text. This grammar is that of the files that Apple's compiler wrote, of its versions 3500 to
//! 3600 (`program(1.0)`, where a scalar is a `tensor<T, []>`, and `program(1.3)`, where it is a plain `T`):
//!
//! ```text
//! program  = "program" "(" NUMBER ")" [attributes] "{" function* "}"
//! function = "func" NAME "<" OPSET ">" block ";"            with [attributes] behind the block's inputs
//! block    = "(" [TYPE NAME {"," TYPE NAME}] ")" [attributes] "{" op* "}" "->" "(" [NAME {"," NAME}] ")"
//! op       = [TYPE NAME {"," TYPE NAME} "="] KIND "(" [KEY "=" argument {"," …}] ")" [attributes] block* ";"
//! argument = binding | "(" binding {"," binding} ")"
//! binding  = NAME | value
//! value    = type "(" contents ")"
//! contents = "BLOBFILE" "(" "path" "=" value "," "offset" "=" value ")" | literal | "[" contents {"," contents} "]"
//! type     = DTYPE | "tensor" "<" DTYPE "," "[" [dims] "]" ">" | "list" "<" type "," dim ">" | "state" "<" type ">"
//!          | "dict" "<" type "," type ">" | "tuple" "<" type {"," type} ">"
//! ```
//!
//! Numbers are decimal, or floats in the hexadecimal form of C99. The attributes of programs, functions and blocks
//! (`buildInfo`, `FlexibleShapeInformation`) say nothing that the description does not; they are skipped, and but for who built it
//! not printed.

mod parse;
mod print;

use coreml_proto::proto::mil_spec::DataType;

pub use parse::SyntaxError;
pub(crate) use parse::parse;
pub use print::Unprintable;
pub(crate) use print::print;

/// Blocks, types and literals may hold others of their kind; deeper than this is an attack on the stack.
const MAX_DEPTH: usize = 32;

/// Whether a name may begin so.
fn begins_name(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_'
}

/// Whether a name may go on so.
fn continues_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'@')
}

/// The element types that have a name in the text.
const ELEMENTS: [(&str, DataType); 20] = [
    ("bool", DataType::Bool),
    ("string", DataType::String),
    ("fp16", DataType::Float16),
    ("fp32", DataType::Float32),
    ("fp64", DataType::Float64),
    ("bf16", DataType::Bfloat16),
    ("int4", DataType::Int4),
    ("int8", DataType::Int8),
    ("int16", DataType::Int16),
    ("int32", DataType::Int32),
    ("int64", DataType::Int64),
    ("uint1", DataType::Uint1),
    ("uint2", DataType::Uint2),
    ("uint3", DataType::Uint3),
    ("uint4", DataType::Uint4),
    ("uint6", DataType::Uint6),
    ("uint8", DataType::Uint8),
    ("uint16", DataType::Uint16),
    ("uint32", DataType::Uint32),
    ("uint64", DataType::Uint64),
];
