//! The message to the text.

use std::fmt::{self, Display, Write};

use coreml_proto::proto::mil_spec as mil;
use mil::argument::binding::Binding;
use mil::tensor_value::Value as Elements;
use mil::value::Value as Contents;
use mil::value::immediate_value::Value as Immediate;
use mil::value_type::Type as TypeKind;
use mil::{DataType, ValueType, dimension};

use super::{ELEMENTS, MAX_DEPTH, begins_name, continues_name};
use crate::decode::mil::immediate_constant;
use crate::ir::Opset;
use crate::types::{DType, element_count};

/// The text has no form for something in the program.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the text has no form for {0}")]
pub struct Unprintable(String);

type Printed<T = ()> = Result<T, Unprintable>;

fn unprintable(what: impl Display) -> Unprintable {
    Unprintable(what.to_string())
}

impl From<fmt::Error> for Unprintable {
    fn from(_: fmt::Error) -> Self {
        unprintable("what cannot be formatted")
    }
}

/// Most pairs of brackets around nothing.
const MOST_EMPTY: usize = 1 << 10;

/// Models from this specification version on (iOS 18) have the newer text.
const NEWER: i32 = 9;

/// Prints the program of a model of that specification version. Functions, arguments and attributes are in the order of their names.
pub(crate) fn print(program: &mil::Program, specification_version: i32) -> Printed<String> {
    let newer = specification_version >= NEWER;
    let mut printer = Printer { text: String::new(), newer };
    writeln!(printer.text, "program({})", if newer { "1.3" } else { "1.0" })?;
    let string = printer.scalar("string");
    let build = concat!("{{\"coreml-engine\", \"", env!("CARGO_PKG_VERSION"), "\"}}");
    writeln!(printer.text, "[buildInfo = dict<{string}, {string}>({build})]\n{{")?;
    for (name, function) in sorted(&program.functions) {
        printer.function(name, function)?;
    }
    printer.text.push_str("}\n");
    Ok(printer.text)
}

fn sorted<T>(entries: &std::collections::HashMap<String, T>) -> Vec<(&String, &T)> {
    let mut entries: Vec<_> = entries.iter().collect();
    entries.sort_by_key(|(name, _)| *name);
    entries
}

struct Printer {
    text: String,
    /// Whether a scalar's type is that of its element.
    newer: bool,
}

impl Printer {
    /// What `item` prints of each, with commas between.
    fn list<T>(
        &mut self,
        items: impl IntoIterator<Item = T>,
        mut item: impl FnMut(&mut Self, T) -> Printed,
    ) -> Printed {
        for (i, x) in items.into_iter().enumerate() {
            if i > 0 {
                self.text.push_str(", ");
            }
            item(self, x)?;
        }
        Ok(())
    }

    /// The type of a scalar of such an element.
    fn scalar(&self, element: &str) -> String {
        if self.newer { element.to_owned() } else { format!("tensor<{element}, []>") }
    }

    fn name(&mut self, name: &str) -> Printed {
        if !name.bytes().next().is_some_and(begins_name) || !name.bytes().all(continues_name) {
            return Err(unprintable(format_args!("the name `{name}`")));
        }
        self.text.push_str(name);
        Ok(())
    }

    fn function(&mut self, name: &str, function: &mil::Function) -> Printed {
        let opset = &function.opset;
        let known = Opset::from_name(opset).zip(function.block_specializations.get(opset));
        let (tag, block) = known.ok_or_else(|| unprintable(format_args!("the opset `{opset}`")))?;
        self.text.push_str("    func ");
        self.name(name)?;
        write!(self.text, "<{}>", tag.name().to_ascii_lowercase())?;
        self.block(&function.inputs, block, 2)?;
        self.text.push_str(";\n");
        Ok(())
    }

    /// `indent` is that of the last line; the ops are one step further in.
    fn block(&mut self, inputs: &[mil::NamedValueType], block: &mil::Block, indent: usize) -> Printed {
        self.text.push('(');
        self.list(inputs, Self::declaration)?;
        self.text.push_str(") {\n");
        for op in &block.operations {
            self.operation(op, indent + 1)?;
        }
        self.indent(indent);
        self.text.push_str("} -> (");
        self.list(&block.outputs, |printer, name| printer.name(name))?;
        self.text.push(')');
        Ok(())
    }

    fn indent(&mut self, indent: usize) {
        self.text.extend(std::iter::repeat_n("    ", indent));
    }

    fn declaration(&mut self, value: &mil::NamedValueType) -> Printed {
        self.ty(value.r#type.as_ref())?;
        self.text.push(' ');
        self.name(&value.name)
    }

    fn operation(&mut self, op: &mil::Operation, indent: usize) -> Printed {
        self.indent(indent);
        self.list(&op.outputs, Self::declaration)?;
        if !op.outputs.is_empty() {
            self.text.push_str(" = ");
        }
        self.name(&op.r#type)?;
        self.text.push('(');
        self.list(sorted(&op.inputs), |printer, (key, argument)| {
            printer.name(key)?;
            printer.text.push_str(" = ");
            match &argument.arguments[..] {
                [one] => printer.binding(one),
                many => {
                    printer.text.push('(');
                    printer.list(many, Self::binding)?;
                    printer.text.push(')');
                    Ok(())
                }
            }
        })?;
        self.text.push_str(")[");
        self.list(sorted(&op.attributes), |printer, (key, value)| {
            printer.name(key)?;
            printer.text.push_str(" = ");
            printer.value(value)
        })?;
        self.text.push(']');
        for block in &op.blocks {
            self.text.push('\n');
            self.indent(indent + 1);
            self.block(&block.inputs, block, indent + 1)?;
        }
        self.text.push_str(";\n");
        Ok(())
    }

    fn binding(&mut self, argument: &mil::argument::Binding) -> Printed {
        match &argument.binding {
            Some(Binding::Name(name)) => self.name(name),
            Some(Binding::Value(value)) => self.value(value),
            None => Err(unprintable("an argument that is empty")),
        }
    }

    fn value(&mut self, value: &mil::Value) -> Printed {
        let ty = value.r#type.as_ref();
        self.ty(ty)?;
        self.text.push('(');
        match &value.value {
            Some(Contents::BlobFileValue(blob)) => {
                let (path, offset) = (quoted(&blob.file_name), blob.offset);
                let [string, uint64] = [self.scalar("string"), self.scalar("uint64")];
                write!(self.text, "BLOBFILE(path = {string}({path}), offset = {uint64}({offset}))")?;
            }
            Some(Contents::ImmediateValue(value)) => {
                match (&value.value, ty.and_then(|ty| ty.r#type.as_ref())) {
                    (Some(Immediate::Tensor(tensor)), Some(TypeKind::TensorType(ty))) => {
                        self.tensor(tensor, ty)?
                    }
                    (Some(Immediate::List(list)), Some(TypeKind::ListType(_))) => {
                        self.text.push('(');
                        self.list(&list.values, Self::value)?;
                        self.text.push(')');
                    }
                    _ => return Err(unprintable("a value that is neither a tensor nor a list")),
                }
            }
            None => return Err(unprintable("a value without contents")),
        }
        self.text.push(')');
        Ok(())
    }

    fn ty(&mut self, ty: Option<&ValueType>) -> Printed {
        match ty.and_then(|ty| ty.r#type.as_ref()) {
            Some(TypeKind::TensorType(ty)) => {
                let dtype = element(ty)?;
                let dtype = ELEMENTS.iter().find(|(_, known)| *known == dtype);
                let &(name, _) = dtype.ok_or_else(|| unprintable("its element type"))?;
                if usize::try_from(ty.rank) != Ok(ty.dimensions.len()) {
                    return Err(unprintable("a tensor of unknown rank"));
                }
                if ty.dimensions.is_empty() && self.newer {
                    self.text.push_str(name);
                    return Ok(());
                }
                write!(self.text, "tensor<{name}, [")?;
                self.list(&ty.dimensions, Self::dimension)?;
                self.text.push_str("]>");
            }
            Some(TypeKind::ListType(ty)) => {
                self.text.push_str("list<");
                self.ty(ty.r#type.as_deref())?;
                self.text.push_str(", ");
                self.dimension(&ty.length.unwrap_or_default())?;
                self.text.push('>');
            }
            Some(TypeKind::StateType(ty)) => {
                self.text.push_str("state<");
                self.ty(ty.wrapped_type.as_deref())?;
                self.text.push('>');
            }
            Some(TypeKind::DictionaryType(ty)) => {
                self.text.push_str("dict<");
                self.ty(ty.key_type.as_deref())?;
                self.text.push_str(", ");
                self.ty(ty.value_type.as_deref())?;
                self.text.push('>');
            }
            Some(TypeKind::TupleType(ty)) => {
                self.text.push_str("tuple<");
                self.list(&ty.types, |printer, ty| printer.ty(Some(ty)))?;
                self.text.push('>');
            }
            None => return Err(unprintable("a value without a type")),
        }
        Ok(())
    }

    fn dimension(&mut self, dimension: &mil::Dimension) -> Printed {
        match dimension.dimension {
            Some(dimension::Dimension::Constant(dimension)) => write!(self.text, "{}", dimension.size)?,
            Some(dimension::Dimension::Unknown(unknown)) if unknown.variadic => {
                return Err(unprintable("a dimension that stands for several"));
            }
            Some(dimension::Dimension::Unknown(_)) | None => self.text.push('?'),
        }
        Ok(())
    }

    fn tensor(&mut self, tensor: &mil::TensorValue, ty: &mil::TensorType) -> Printed {
        let sizes = ty.dimensions.iter().map(|dimension| match dimension.dimension {
            Some(dimension::Dimension::Constant(dimension)) => usize::try_from(dimension.size).ok(),
            _ => None,
        });
        let sizes: Option<Vec<usize>> = sizes.collect();
        let shape = sizes.filter(|shape| shape.len() <= MAX_DEPTH);
        let shape =
            shape.ok_or_else(|| unprintable("a constant of unknown shape, or of so many dimensions"))?;
        let dtype = element(ty)?;
        let float =
            matches!(dtype, DataType::Float16 | DataType::Float32 | DataType::Float64 | DataType::Bfloat16);
        let integer = !float && !matches!(dtype, DataType::Bool | DataType::String);
        match (dtype, &tensor.value) {
            (DataType::Bool, Some(Elements::Bools(v))) => self.elements(&shape, &v.values, boolean),
            (DataType::Bool, Some(Elements::Ints(v))) if v.values.iter().all(|x| matches!(x, 0 | 1)) => {
                self.elements(&shape, &v.values, |text, &x| boolean(text, &(x == 1)))
            }
            (DataType::String, Some(Elements::Strings(v))) => {
                self.elements(&shape, &v.values, |text, x| text.write_str(&quoted(x)))
            }
            (_, Some(Elements::Floats(v))) if float => {
                self.elements(&shape, &v.values, |text, &x| hexadecimal(text, x.into()))
            }
            (_, Some(Elements::Doubles(v))) if float => {
                self.elements(&shape, &v.values, |text, &x| hexadecimal(text, x))
            }
            (_, Some(Elements::Ints(v))) if integer => self.elements(&shape, &v.values, decimal),
            (_, Some(Elements::LongInts(v))) if integer => self.elements(&shape, &v.values, decimal),
            (_, Some(Elements::Bytes(_))) => self.packed(tensor, dtype, &shape),
            (_, None) => self.elements(&shape, &[0; 0], decimal),
            (dtype, Some(_)) => Err(unprintable(format_args!("other elements than those of {dtype:?}"))),
        }
    }

    /// Elements that lie as in a weight file.
    fn packed(&mut self, tensor: &mil::TensorValue, dtype: DataType, shape: &[usize]) -> Printed {
        let dtype = DType::from_proto(dtype.into());
        let dtype = dtype.ok_or_else(|| unprintable("bytes of an element type that no op has"))?;
        let constant = immediate_constant(dtype, shape.to_vec(), tensor).map_err(unprintable)?;
        if dtype.is_float() {
            let floats = constant.to_f32().map_err(unprintable)?;
            return self.elements(shape, &floats, |text, &x| hexadecimal(text, x.into()));
        }
        let ints = constant.to_i32().map_err(unprintable)?;
        match dtype {
            DType::Bool => self.elements(shape, &ints, |text, &x| boolean(text, &(x != 0))),
            _ => self.elements(shape, &ints, decimal),
        }
    }

    /// The elements in brackets as the shape says.
    fn elements<T>(
        &mut self,
        shape: &[usize],
        elements: &[T],
        print: impl Fn(&mut String, &T) -> fmt::Result,
    ) -> Printed {
        if element_count(shape) != Some(elements.len()) {
            return Err(unprintable(format_args!("{} elements of shape {shape:?}", elements.len())));
        }
        let rows =
            shape.iter().take_while(|&&size| size > 0).try_fold(1_usize, |n, &size| n.checked_mul(size));
        if elements.is_empty() && rows.is_none_or(|rows| rows > MOST_EMPTY) {
            return Err(unprintable(format_args!("no elements of shape {shape:?}")));
        }
        self.nested(shape, elements, &print)
    }

    fn nested<T>(
        &mut self,
        shape: &[usize],
        elements: &[T],
        print: &impl Fn(&mut String, &T) -> fmt::Result,
    ) -> Printed {
        let Some((&size, inner)) = shape.split_first() else {
            elements.iter().try_for_each(|element| print(&mut self.text, element))?;
            return Ok(());
        };
        self.text.push('[');
        self.list(0..size, |printer, i| {
            let length = elements.len() / size;
            printer.nested(inner, &elements[i * length..][..length], print)
        })?;
        self.text.push(']');
        Ok(())
    }
}

fn boolean(text: &mut String, x: &bool) -> fmt::Result {
    write!(text, "{x}")
}

fn decimal<T: Display>(text: &mut String, x: &T) -> fmt::Result {
    write!(text, "{x}")
}

fn element(ty: &mil::TensorType) -> Printed<DataType> {
    DataType::try_from(ty.data_type)
        .map_err(|_| unprintable(format_args!("the element type {}", ty.data_type)))
}

fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            ' '..='~' => quoted.push(c),
            other => {
                let mut bytes = [0; 4];
                let bytes = other.encode_utf8(&mut bytes).bytes();
                quoted.extend(bytes.flat_map(|byte| format!("\\x{byte:02x}").into_bytes()).map(char::from));
            }
        }
    }
    quoted.push('"');
    quoted
}

/// As C prints `%a`.
fn hexadecimal(text: &mut String, x: f64) -> fmt::Result {
    let sign = if x.is_sign_negative() { "-" } else { "" };
    let (exponent, mantissa) = (x.to_bits() >> 52 & 0x7ff, x.to_bits() & ((1 << 52) - 1));
    let (whole, exponent) = match exponent {
        0x7ff if mantissa == 0 => return write!(text, "{sign}inf"),
        0x7ff => return text.write_str("nan"),
        0 if mantissa == 0 => return write!(text, "{sign}0x0p+0"),
        0 => (0, -1022),
        exponent => (1, exponent.cast_signed() - 1023),
    };
    let digits = format!("{mantissa:013x}");
    let digits = digits.trim_end_matches('0');
    let point = if digits.is_empty() { "" } else { "." };
    write!(text, "{sign}0x{whole}{point}{digits}p{exponent:+}")
}

#[cfg(test)]
mod tests {
    use super::*;

    type Of<T> = fn(Vec<T>) -> Elements;

    fn value(dtype: DataType, shape: &[u64], elements: Option<Elements>) -> mil::Value {
        let dimensions = shape.iter().map(|&size| mil::Dimension {
            dimension: Some(dimension::Dimension::Constant(dimension::ConstantDimension { size })),
        });
        let ty = mil::TensorType {
            data_type: dtype.into(),
            rank: shape.len() as i64,
            dimensions: dimensions.collect(),
            ..Default::default()
        };
        let tensor = Immediate::Tensor(mil::TensorValue { value: elements });
        mil::Value {
            r#type: Some(ValueType { r#type: Some(TypeKind::TensorType(ty)) }),
            value: Some(Contents::ImmediateValue(mil::value::ImmediateValue { value: Some(tensor) })),
            ..Default::default()
        }
    }

    fn printed(dtype: DataType, shape: &[u64], elements: Option<Elements>) -> Result<String, Unprintable> {
        let mut printer = Printer { text: String::new(), newer: true };
        printer.value(&value(dtype, shape, elements)).map(|()| printer.text)
    }

    const FLOATS: Of<f32> = |values| Elements::Floats(mil::tensor_value::RepeatedFloats { values });
    const INTS: Of<i32> = |values| Elements::Ints(mil::tensor_value::RepeatedInts { values });
    const BYTES: Of<u8> = |values| Elements::Bytes(mil::tensor_value::RepeatedBytes { values });

    #[test]
    fn elements_of_every_type_are_printed_as_c_and_apples_compiler_do() {
        let strings = |values: &[&str]| {
            let values = values.iter().map(|&text| text.to_owned()).collect();
            Some(Elements::Strings(mil::tensor_value::RepeatedStrings { values }))
        };
        let numbers = vec![1.0, -0.0, -0.1875, f32::from_bits(1), f32::MAX, f32::NEG_INFINITY, f32::NAN];
        let longs = Elements::LongInts(mil::tensor_value::RepeatedLongInts { values: vec![1 << 40] });
        let doubles =
            Elements::Doubles(mil::tensor_value::RepeatedDoubles { values: vec![f64::from_bits(1)] });
        let bools = Elements::Bools(mil::tensor_value::RepeatedBools { values: vec![true] });
        for (dtype, shape, elements, wanted) in [
            (
                DataType::Float32,
                &[7][..],
                Some(FLOATS(numbers)),
                "tensor<fp32, [7]>([0x1p+0, -0x0p+0, -0x1.8p-3, 0x1p-149, 0x1.fffffep+127, -inf, nan])",
            ),
            (DataType::Bfloat16, &[], Some(FLOATS(vec![0.5])), "bf16(0x1p-1)"),
            (DataType::Float64, &[], Some(doubles), "fp64(0x0.0000000000001p-1022)"),
            (
                DataType::Float16,
                &[2],
                Some(BYTES(vec![0, 0x3c, 1, 0])),
                "tensor<fp16, [2]>([0x1p+0, 0x1p-24])",
            ),
            (DataType::Int32, &[2, 1], Some(INTS(vec![-1, 2])), "tensor<int32, [2, 1]>([[-1], [2]])"),
            (DataType::Int8, &[2], Some(BYTES(vec![0xff, 1])), "tensor<int8, [2]>([-1, 1])"),
            (DataType::Uint4, &[3], Some(BYTES(vec![0x21, 0x0f])), "tensor<uint4, [3]>([1, 2, 15])"),
            (DataType::Int64, &[], Some(longs), "int64(1099511627776)"),
            (DataType::Uint64, &[], Some(INTS(vec![7])), "uint64(7)"),
            (DataType::Bool, &[], Some(bools), "bool(true)"),
            (DataType::Bool, &[2], Some(INTS(vec![0, 1])), "tensor<bool, [2]>([false, true])"),
            (DataType::Bool, &[2], Some(BYTES(vec![0, 1])), "tensor<bool, [2]>([false, true])"),
            (DataType::String, &[], strings(&["a \"b\"\\\n\u{e9}"]), r#"string("a \"b\"\\\n\xc3\xa9")"#),
            (DataType::Float32, &[0], None, "tensor<fp32, [0]>([])"),
            (DataType::Float32, &[2, 0, 3], None, "tensor<fp32, [2, 0, 3]>([[], []])"),
        ] {
            assert_eq!(printed(dtype, shape, elements).as_deref(), Ok(wanted));
        }
    }

    #[test]
    fn what_would_be_read_as_something_else_or_takes_much_room_is_refused() {
        let deep = [1; MAX_DEPTH + 1];
        for (dtype, shape, elements) in [
            (DataType::Bool, &[][..], Some(INTS(vec![2]))),
            (DataType::Int32, &[], Some(FLOATS(vec![1.5]))),
            (DataType::Float32, &[], Some(INTS(vec![1]))),
            (DataType::Float8e4m3fn, &[1], Some(BYTES(vec![1]))),
            (DataType::Int32, &[2], Some(INTS(vec![1]))),
            (DataType::Int32, &[], None),
            (DataType::Int32, &[1 << 40, 0], None),
            (DataType::Int32, &deep, Some(INTS(vec![1]))),
        ] {
            assert!(printed(dtype, shape, elements).is_err(), "{dtype:?} {shape:?}");
        }
    }
}
