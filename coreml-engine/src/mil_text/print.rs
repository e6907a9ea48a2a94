//! The message to the text.

use std::fmt::{self, Display, Write};

use coreml_proto::proto::mil_spec as mil;
use mil::argument::binding::Binding;
use mil::tensor_value::Value as Elements;
use mil::value::Value as Contents;
use mil::value::immediate_value::Value as Immediate;
use mil::value_type::Type as TypeKind;
use mil::{DataType, ValueType, dimension};

use super::{ELEMENTS, MAX_DEPTH};
use crate::decode::mil::immediate_constant;
use crate::ir::Opset;
use crate::types::{DType, element_count};

/// The text has no form for something in the program.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the text has no form for {0}")]
pub struct Unprintable(pub String);

type Printed<T = ()> = Result<T, Unprintable>;

fn unprintable(what: impl Display) -> Unprintable {
    Unprintable(what.to_string())
}

impl From<fmt::Error> for Unprintable {
    fn from(_: fmt::Error) -> Self {
        unprintable("so long a program")
    }
}

/// Models from this specification version on (iOS 18) have the newer text.
const NEWER: i32 = 9;

/// Prints the program of a model of that specification version. Functions, arguments and attributes are in the order of their names.
pub(crate) fn print(program: &mil::Program, specification_version: i32) -> Printed<String> {
    let newer = specification_version >= NEWER;
    let mut printer = Printer { text: String::new(), newer };
    writeln!(printer.text, "program({})", if newer { "1.3" } else { "1.0" })?;
    let string = printer.scalar("string");
    let build = concat!("{{\"coreml-engine\", \"", env!("CARGO_PKG_VERSION"), "\"}}");
    writeln!(
        printer.text,
        "[buildInfo = dict<{string}, {string}>({build})]
{{"
    )?;
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
        let first = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !first || !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '@')) {
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
        let elements: Vec<String> = match &tensor.value {
            Some(Elements::Floats(v)) => v.values.iter().map(|&x| hexadecimal(x.into())).collect(),
            Some(Elements::Doubles(v)) => v.values.iter().map(|&x| hexadecimal(x)).collect(),
            Some(Elements::Ints(v)) if dtype == DataType::Bool => {
                v.values.iter().map(|&x| (x != 0).to_string()).collect()
            }
            Some(Elements::Ints(v)) => v.values.iter().map(ToString::to_string).collect(),
            Some(Elements::LongInts(v)) => v.values.iter().map(ToString::to_string).collect(),
            Some(Elements::Bools(v)) => v.values.iter().map(ToString::to_string).collect(),
            Some(Elements::Strings(v)) => v.values.iter().map(|text| quoted(text)).collect(),
            // Packed as in a weight file.
            Some(Elements::Bytes(_)) => {
                let dtype = DType::from_proto(dtype.into())
                    .ok_or_else(|| unprintable(format_args!("bytes of type {dtype:?}")))?;
                let constant = immediate_constant(dtype, shape.clone(), tensor).map_err(unprintable)?;
                if dtype.is_float() {
                    let floats = constant.to_f32().map_err(unprintable)?;
                    floats.into_iter().map(|x| hexadecimal(x.into())).collect()
                } else {
                    let ints = constant.to_i32().map_err(unprintable)?;
                    let boolean = dtype == DType::Bool;
                    ints.into_iter()
                        .map(|x| if boolean { (x != 0).to_string() } else { x.to_string() })
                        .collect()
                }
            }
            None => Vec::new(),
        };
        if element_count(&shape) != Some(elements.len()) {
            return Err(unprintable(format_args!("{} elements of shape {shape:?}", elements.len())));
        }
        self.nested(&shape, &elements);
        Ok(())
    }

    /// In brackets as the shape says.
    fn nested(&mut self, shape: &[usize], elements: &[String]) {
        let Some((&size, inner)) = shape.split_first() else {
            return elements.iter().for_each(|element| self.text.push_str(element));
        };
        self.text.push('[');
        for i in 0..size {
            if i > 0 {
                self.text.push_str(", ");
            }
            let length = elements.len() / size;
            self.nested(inner, &elements[i * length..][..length]);
        }
        self.text.push(']');
    }
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
fn hexadecimal(x: f64) -> String {
    let sign = if x.is_sign_negative() { "-" } else { "" };
    let (exponent, mantissa) = (x.to_bits() >> 52 & 0x7ff, x.to_bits() & ((1 << 52) - 1));
    let (whole, exponent) = match exponent {
        0x7ff if mantissa == 0 => return format!("{sign}inf"),
        0x7ff => return "nan".into(),
        0 if mantissa == 0 => return format!("{sign}0x0p+0"),
        0 => (0, -1022),
        exponent => (1, exponent.cast_signed() - 1023),
    };
    let digits = format!("{mantissa:013x}");
    let digits = digits.trim_end_matches('0');
    let point = if digits.is_empty() { "" } else { "." };
    format!("{sign}0x{whole}{point}{digits}p{exponent:+}")
}
