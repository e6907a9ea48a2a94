//! The text to the message.

use std::collections::HashMap;

use coreml_proto::proto::mil_spec as mil;
use mil::argument::{Binding as Bound, binding::Binding};
use mil::value::immediate_value::Value as Immediate;
use mil::value::{BlobFileValue, ImmediateValue, Value as Contents};
use mil::value_type::Type as TypeKind;
use mil::{DataType, Dimension, ValueType, dimension, tensor_value};

use super::{ELEMENTS, MAX_DEPTH, begins_name, continues_name};

/// The text of a program does not parse.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {reason}")]
pub struct SyntaxError {
    /// Line, from 1.
    pub line: usize,
    /// Column in bytes, from 1.
    pub column: usize,
    /// What was expected, and what is there.
    pub reason: String,
}

type Parsed<T> = Result<T, SyntaxError>;

/// Parses a program. `folder` is put before the path of every weight file: `model0/` for the first model of a pipeline.
pub(crate) fn parse(text: &[u8], folder: &str) -> Parsed<mil::Program> {
    let mut parser = Parser { lexer: Lexer { text, at: 0 }, token: Token::End, start: 0, folder };
    parser.advance()?;
    parser.program()
}

#[derive(Clone, Debug, PartialEq)]
enum Token<'a> {
    Name(&'a str),
    Number(&'a str),
    Text(String),
    Mark(char),
    Arrow,
    End,
}

impl Token<'_> {
    fn words(&self) -> String {
        match self {
            Self::Name(name) => format!("`{name}`"),
            Self::Number(number) => format!("the number {number}"),
            Self::Text(_) => "a text".into(),
            Self::Mark(mark) => format!("`{mark}`"),
            Self::Arrow => "`->`".into(),
            Self::End => "the end of the file".into(),
        }
    }
}

struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Lexer<'a> {
    fn peek(&self, ahead: usize) -> u8 {
        self.text.get(self.at.saturating_add(ahead)).copied().unwrap_or(0)
    }

    fn error(&self, at: usize, reason: impl Into<String>) -> SyntaxError {
        let before = self.text.get(..at).unwrap_or(self.text);
        let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
        let column = before.iter().rev().take_while(|&&byte| byte != b'\n').count() + 1;
        SyntaxError { line, column, reason: reason.into() }
    }

    /// The bytes from here on that satisfy `f`; all of them are ASCII.
    fn run(&mut self, f: impl Fn(u8) -> bool) -> &'a str {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let length = rest.iter().take_while(|&&byte| f(byte)).count();
        self.at += length;
        std::str::from_utf8(&rest[..length]).unwrap_or_default()
    }

    /// The next token and where it begins.
    fn next(&mut self) -> Parsed<(Token<'a>, usize)> {
        self.run(|byte| byte.is_ascii_whitespace());
        let start = self.at;
        let Some(&first) = self.text.get(start) else { return Ok((Token::End, start)) };
        let token = match first {
            first if begins_name(first) => Token::Name(self.run(continues_name)),
            b'-' if self.peek(1) == b'>' => {
                self.at += 2;
                Token::Arrow
            }
            b'0'..=b'9' | b'-' | b'+' | b'.' => Token::Number(self.number()),
            b'"' => {
                self.at += 1;
                Token::Text(self.quoted(start)?)
            }
            b'(' | b')' | b'[' | b']' | b'{' | b'}' | b'<' | b'>' | b',' | b'=' | b';' | b'?' => {
                self.at += 1;
                Token::Mark(char::from(first))
            }
            other => {
                return Err(self.error(start, format!("the byte 0x{other:02x} has no meaning here")));
            }
        };
        Ok((token, start))
    }

    fn number(&mut self) -> &'a str {
        let start = self.at;
        let mut before = 0;
        let hexadecimal = {
            let sign = usize::from(matches!(self.peek(0), b'-' | b'+'));
            self.peek(sign) == b'0' && matches!(self.peek(sign + 1), b'x' | b'X')
        };
        let exponent = |byte: u8| {
            if hexadecimal { matches!(byte, b'p' | b'P') } else { matches!(byte, b'e' | b'E') }
        };
        loop {
            let byte = self.peek(0);
            let sign = matches!(byte, b'-' | b'+') && (self.at == start || exponent(before));
            if !(sign || byte.is_ascii_alphanumeric() || byte == b'.') {
                break;
            }
            before = byte;
            self.at += 1;
        }
        std::str::from_utf8(&self.text[start..self.at]).unwrap_or_default()
    }

    /// The rest of a text, after its first quote.
    fn quoted(&mut self, start: usize) -> Parsed<String> {
        let mut bytes = Vec::new();
        loop {
            let Some(&byte) = self.text.get(self.at) else {
                return Err(self.error(start, "the text has no end"));
            };
            self.at += 1;
            match byte {
                b'"' => break,
                b'\\' => {
                    let escaped = self.peek(0);
                    self.at += 1;
                    bytes.push(match escaped {
                        b'"' | b'\\' | b'\'' | b'/' => escaped,
                        b'n' => b'\n',
                        b'r' => b'\r',
                        b't' => b'\t',
                        b'x' => {
                            let digits = self.text.get(self.at..self.at + 2).unwrap_or_default();
                            let digits = std::str::from_utf8(digits).unwrap_or_default();
                            self.at += 2;
                            u8::from_str_radix(digits, 16)
                                .map_err(|_| self.error(start, "two hexadecimal digits follow `\\x`"))?
                        }
                        _ => return Err(self.error(self.at - 1, "this is no escape")),
                    });
                }
                byte => bytes.push(byte),
            }
        }
        String::from_utf8(bytes).map_err(|_| self.error(start, "the text is not UTF-8"))
    }
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    /// The token to be read next.
    token: Token<'a>,
    /// Where it begins.
    start: usize,
    folder: &'a str,
}

impl<'a> Parser<'a> {
    fn advance(&mut self) -> Parsed<Token<'a>> {
        let (token, start) = self.lexer.next()?;
        self.start = start;
        Ok(std::mem::replace(&mut self.token, token))
    }

    fn error(&self, reason: impl Into<String>) -> SyntaxError {
        self.lexer.error(self.start, reason)
    }

    fn unexpected(&self, expected: &str) -> SyntaxError {
        self.error(format!("expected {expected}, found {}", self.token.words()))
    }

    fn is(&self, mark: char) -> bool {
        self.token == Token::Mark(mark)
    }

    /// Whether the token is that mark; if so it is read.
    fn accept(&mut self, mark: char) -> Parsed<bool> {
        let found = self.is(mark);
        if found {
            self.advance()?;
        }
        Ok(found)
    }

    fn expect(&mut self, mark: char) -> Parsed<()> {
        if self.accept(mark)? { Ok(()) } else { Err(self.unexpected(&format!("`{mark}`"))) }
    }

    fn name(&mut self, what: &str) -> Parsed<&'a str> {
        let Token::Name(name) = self.token else { return Err(self.unexpected(what)) };
        self.advance()?;
        Ok(name)
    }

    fn keyword(&mut self, word: &str) -> Parsed<()> {
        if self.token != Token::Name(word) {
            return Err(self.unexpected(&format!("`{word}`")));
        }
        self.advance()?;
        Ok(())
    }

    /// What `item` reads, between commas, up to and with the mark `close`.
    fn list<T>(&mut self, close: char, mut item: impl FnMut(&mut Self) -> Parsed<T>) -> Parsed<Vec<T>> {
        let mut items = Vec::new();
        if self.accept(close)? {
            return Ok(items);
        }
        loop {
            items.push(item(self)?);
            if self.accept(close)? {
                return Ok(items);
            }
            if !self.accept(',')? {
                return Err(self.unexpected(&format!("`,` or `{close}`")));
            }
        }
    }

    fn deeper(&self, depth: usize) -> Parsed<usize> {
        if depth >= MAX_DEPTH {
            return Err(self.error(format!("nested deeper than {MAX_DEPTH}")));
        }
        Ok(depth + 1)
    }

    fn program(&mut self) -> Parsed<mil::Program> {
        self.keyword("program")?;
        self.expect('(')?;
        let Token::Number(version) = self.token else { return Err(self.unexpected("a version")) };
        if version.split('.').next() != Some("1") {
            return Err(self.error(format!("version {version} of the text is not known")));
        }
        self.advance()?;
        self.expect(')')?;
        self.skip_attributes()?;
        self.expect('{')?;
        let mut functions = HashMap::new();
        while !self.accept('}')? {
            let start = self.start;
            let (name, function) = self.function()?;
            if functions.insert(name.to_owned(), function).is_some() {
                return Err(self.lexer.error(start, format!("a second function `{name}`")));
            }
        }
        if self.token != Token::End {
            return Err(self.unexpected("the end of the file"));
        }
        Ok(mil::Program { version: 1, functions, ..mil::Program::default() })
    }

    fn function(&mut self) -> Parsed<(&'a str, mil::Function)> {
        self.keyword("func")?;
        let name = self.name("the name of a function")?;
        self.expect('<')?;
        let start = self.start;
        let tag = self.name("an opset")?;
        let opset = crate::ir::Opset::from_tag(tag)
            .ok_or_else(|| self.lexer.error(start, format!("the opset `{tag}` is not known")))?
            .program_name()
            .to_owned();
        self.expect('>')?;
        let mut block = self.block(0)?;
        self.expect(';')?;
        let inputs = std::mem::take(&mut block.inputs);
        let block_specializations = HashMap::from([(opset.clone(), block)]);
        Ok((name, mil::Function { inputs, opset, block_specializations, attributes: HashMap::new() }))
    }

    /// A block; that of a function has the function's inputs.
    fn block(&mut self, depth: usize) -> Parsed<mil::Block> {
        let depth = self.deeper(depth)?;
        self.expect('(')?;
        let inputs = self.list(')', Self::declaration)?;
        self.skip_attributes()?;
        self.expect('{')?;
        let mut operations = Vec::new();
        while !self.accept('}')? {
            operations.push(self.operation(depth)?);
        }
        if self.token != Token::Arrow {
            return Err(self.unexpected("`->`"));
        }
        self.advance()?;
        self.expect('(')?;
        let outputs = self.list(')', |parser| parser.name("the name of an output").map(str::to_owned))?;
        Ok(mil::Block { inputs, outputs, operations, attributes: HashMap::new() })
    }

    fn declaration(&mut self) -> Parsed<mil::NamedValueType> {
        let ty = self.ty(0)?;
        let name = self.name("the name of a value")?.to_owned();
        Ok(mil::NamedValueType { name, r#type: Some(ty) })
    }

    fn operation(&mut self, depth: usize) -> Parsed<mil::Operation> {
        // An op without outputs begins with its kind and `(`, any other with a type.
        let first = self.name("an op or the type of its output")?;
        let mut outputs = Vec::new();
        let kind = if self.is('(') {
            first
        } else {
            let ty = self.ty_of(first, 0)?;
            let name = self.name("the name of a value")?.to_owned();
            outputs.push(mil::NamedValueType { name, r#type: Some(ty) });
            while self.accept(',')? {
                outputs.push(self.declaration()?);
            }
            self.expect('=')?;
            self.name("the kind of an op")?
        };
        self.expect('(')?;
        let inputs = self.entries(')', |parser| {
            let bindings =
                if parser.accept('(')? { parser.list(')', Self::binding)? } else { vec![parser.binding()?] };
            let arguments = bindings.into_iter().map(|b| Bound { binding: Some(b) }).collect();
            Ok(mil::Argument { arguments })
        })?;
        let attributes =
            if self.accept('[')? { self.entries(']', |parser| parser.value())? } else { HashMap::new() };
        let mut blocks = Vec::new();
        while self.is('(') {
            blocks.push(self.block(depth)?);
        }
        self.expect(';')?;
        Ok(mil::Operation { r#type: kind.to_owned(), inputs, outputs, blocks, attributes })
    }

    /// `KEY = item` between commas, up to and with the mark `close`; no key twice.
    fn entries<T>(
        &mut self,
        close: char,
        mut item: impl FnMut(&mut Self) -> Parsed<T>,
    ) -> Parsed<HashMap<String, T>> {
        let mut entries = HashMap::new();
        self.list(close, |parser| {
            let start = parser.start;
            let key = parser.name("the name of a parameter")?;
            parser.expect('=')?;
            let item = item(parser)?;
            match entries.insert(key.to_owned(), item) {
                None => Ok(()),
                Some(_) => Err(parser.lexer.error(start, format!("a second `{key}`"))),
            }
        })?;
        Ok(entries)
    }

    fn binding(&mut self) -> Parsed<Binding> {
        let name = self.name("the name of a value, or a value")?;
        if self.is('(') || self.is('<') {
            self.value_of(name).map(Binding::Value)
        } else {
            Ok(Binding::Name(name.to_owned()))
        }
    }

    fn value(&mut self) -> Parsed<mil::Value> {
        let first = self.name("a type")?;
        self.value_of(first)
    }

    /// A value whose type begins with the word `first`, which is read already.
    fn value_of(&mut self, first: &str) -> Parsed<mil::Value> {
        let ty = self.ty_of(first, 0)?;
        self.expect('(')?;
        let contents = if self.token == Token::Name("BLOBFILE") {
            self.advance()?;
            Contents::BlobFileValue(self.blob_file()?)
        } else {
            Contents::ImmediateValue(self.immediate(&ty, 0)?)
        };
        self.expect(')')?;
        Ok(mil::Value { doc_string: String::new(), r#type: Some(ty), value: Some(contents) })
    }

    /// The rest of `BLOBFILE(path = string("@model_path/…"), offset = uint64(64))`.
    fn blob_file(&mut self) -> Parsed<BlobFileValue> {
        let start = self.start;
        self.expect('(')?;
        let mut entries = self.entries(')', |parser| {
            let (ty, start) = (parser.ty(0)?, parser.start);
            parser.expect('(')?;
            let scalar = matches!(&ty.r#type, Some(TypeKind::TensorType(ty)) if ty.rank == 0);
            let token = parser.advance()?;
            parser.expect(')')?;
            if scalar { Ok(token) } else { Err(parser.lexer.error(start, "expected a scalar")) }
        })?;
        let (path, offset) = (entries.remove("path"), entries.remove("offset"));
        let (Some(Token::Text(path)), Some(Token::Number(offset)), true) = (path, offset, entries.is_empty())
        else {
            return Err(self.lexer.error(start, "a file of weights has a `path` and an `offset`"));
        };
        let offset = offset
            .parse()
            .map_err(|_| self.lexer.error(start, format!("{offset} is no offset into a file")))?;
        let file_name = match path.strip_prefix("@model_path/") {
            Some(rest) => format!("@model_path/{}{rest}", self.folder),
            None => path,
        };
        Ok(BlobFileValue { file_name, offset })
    }

    /// What stands between the parentheses of a value of that type.
    fn immediate(&mut self, ty: &ValueType, depth: usize) -> Parsed<ImmediateValue> {
        let depth = self.deeper(depth)?;
        let value = match &ty.r#type {
            Some(TypeKind::TensorType(ty)) => Immediate::Tensor(self.tensor(ty)?),
            Some(TypeKind::ListType(list)) => {
                let element = list.r#type.as_deref().cloned().unwrap_or_default();
                let close = match self.token {
                    Token::Mark('(') => ')',
                    Token::Mark('[') => ']',
                    _ => return Err(self.unexpected("`(` or `[`, which begin a list")),
                };
                self.advance()?;
                let values = self.list(close, |parser| {
                    if matches!(parser.token, Token::Name(name) if !matches!(name, "true" | "false" | "inf" | "nan")) {
                        return parser.value();
                    }
                    let value = Contents::ImmediateValue(parser.immediate(&element, depth)?);
                    let ty = Some(element.clone());
                    Ok(mil::Value { doc_string: String::new(), r#type: ty, value: Some(value) })
                })?;
                Immediate::List(mil::ListValue { values })
            }
            _ => return Err(self.error("a value of this type is not supported")),
        };
        Ok(ImmediateValue { value: Some(value) })
    }

    /// The elements of a tensor, nested in brackets as its shape says.
    fn tensor(&mut self, ty: &mil::TensorType) -> Parsed<mil::TensorValue> {
        let mut shape = Vec::with_capacity(ty.dimensions.len());
        for dimension in &ty.dimensions {
            match dimension.dimension {
                Some(dimension::Dimension::Constant(c)) => shape.push(c.size),
                _ => return Err(self.error("a constant of unknown shape")),
            }
        }
        // One pair of brackets in the other for each dimension.
        self.deeper(shape.len())?;
        let dtype = DataType::try_from(ty.data_type).unwrap_or(DataType::UnusedType);
        let mut elements = Elements::of(dtype);
        self.nested(&shape, &mut elements)?;
        Ok(mil::TensorValue { value: Some(elements.finish()) })
    }

    fn nested(&mut self, shape: &[u64], elements: &mut Elements) -> Parsed<()> {
        let Some((&size, inner)) = shape.split_first() else { return self.element(elements) };
        let start = self.start;
        self.expect('[')?;
        let found = self.list(']', |parser| parser.nested(inner, elements))?.len();
        if u64::try_from(found) != Ok(size) {
            return Err(self.lexer.error(start, format!("{found} elements where the type says {size}")));
        }
        Ok(())
    }

    fn element(&mut self, elements: &mut Elements) -> Parsed<()> {
        if elements.push(&self.token).is_none() {
            return Err(self.unexpected(elements.words()));
        }
        self.advance()?;
        Ok(())
    }

    fn ty(&mut self, depth: usize) -> Parsed<ValueType> {
        let first = self.name("a type")?;
        self.ty_of(first, depth)
    }

    /// A type that begins with the word `first`, which is read already.
    fn ty_of(&mut self, first: &str, depth: usize) -> Parsed<ValueType> {
        let depth = self.deeper(depth)?;
        let kind = match first {
            "tensor" => {
                self.expect('<')?;
                let start = self.start;
                let element = self.name("an element type")?;
                let data_type = self.dtype(element, start)?;
                self.expect(',')?;
                self.expect('[')?;
                let dimensions = self.list(']', Self::dimension)?;
                self.expect('>')?;
                tensor_of(data_type, dimensions)
            }
            "list" => {
                self.expect('<')?;
                let element = self.ty(depth)?;
                self.expect(',')?;
                let length = self.dimension()?;
                self.expect('>')?;
                TypeKind::ListType(Box::new(mil::ListType {
                    r#type: Some(Box::new(element)),
                    length: Some(length),
                }))
            }
            "state" => {
                self.expect('<')?;
                let wrapped = self.ty(depth)?;
                self.expect('>')?;
                TypeKind::StateType(Box::new(mil::StateType { wrapped_type: Some(Box::new(wrapped)) }))
            }
            "dict" => {
                self.expect('<')?;
                let key = self.ty(depth)?;
                self.expect(',')?;
                let value = self.ty(depth)?;
                self.expect('>')?;
                TypeKind::DictionaryType(Box::new(mil::DictionaryType {
                    key_type: Some(Box::new(key)),
                    value_type: Some(Box::new(value)),
                }))
            }
            "tuple" => {
                self.expect('<')?;
                let types = self.list('>', |parser| parser.ty(depth))?;
                TypeKind::TupleType(mil::TupleType { types })
            }
            dtype => tensor_of(self.dtype(dtype, self.start)?, Vec::new()),
        };
        Ok(ValueType { r#type: Some(kind) })
    }

    fn dimension(&mut self) -> Parsed<Dimension> {
        let size = match self.token {
            Token::Mark('?') => {
                dimension::Dimension::Unknown(dimension::UnknownDimension { variadic: false })
            }
            Token::Number(number) => match number.parse() {
                Ok(size) => dimension::Dimension::Constant(dimension::ConstantDimension { size }),
                Err(_) => return Err(self.unexpected("a dimension")),
            },
            _ => return Err(self.unexpected("a dimension")),
        };
        self.advance()?;
        Ok(Dimension { dimension: Some(size) })
    }

    fn dtype(&self, name: &str, at: usize) -> Parsed<DataType> {
        let found = ELEMENTS.iter().find(|(known, _)| *known == name);
        let unknown = || self.lexer.error(at, format!("the type `{name}` is not known"));
        found.map(|&(_, dtype)| dtype).ok_or_else(unknown)
    }

    /// Reads over `[ … ]`, if it is there.
    fn skip_attributes(&mut self) -> Parsed<()> {
        if !self.is('[') {
            return Ok(());
        }
        let start = self.start;
        // `<` and `>` need no counting: whatever they enclose is balanced in the other brackets.
        let mut open = 0_usize;
        loop {
            match self.advance()? {
                Token::Mark('(' | '[' | '{') => open += 1,
                Token::Mark(')' | ']' | '}') => {
                    open -= 1;
                    if open == 0 {
                        return Ok(());
                    }
                }
                Token::End => return Err(self.lexer.error(start, "the attributes have no end")),
                _ => {}
            }
        }
    }
}

fn tensor_of(data_type: DataType, dimensions: Vec<Dimension>) -> TypeKind {
    let rank = i64::try_from(dimensions.len()).unwrap_or(i64::MAX);
    TypeKind::TensorType(mil::TensorType {
        data_type: data_type.into(),
        rank,
        dimensions,
        attributes: HashMap::new(),
    })
}

/// The elements of a constant, as they are read.
enum Elements {
    Floats(Vec<f32>),
    Doubles(Vec<f64>),
    /// With the least and the greatest that the type holds.
    Ints(Vec<i64>, i64, i64),
    Bools(Vec<bool>),
    Strings(Vec<String>),
    /// Of a type that has no literals.
    None,
}

impl Elements {
    fn of(dtype: DataType) -> Self {
        let signed = |bits: u32| Self::Ints(Vec::new(), -(1 << (bits - 1)), (1 << (bits - 1)) - 1);
        let unsigned = |bits: u32| Self::Ints(Vec::new(), 0, (1 << bits) - 1);
        match dtype {
            DataType::Float16 | DataType::Float32 | DataType::Bfloat16 => Self::Floats(Vec::new()),
            DataType::Float64 => Self::Doubles(Vec::new()),
            DataType::Bool => Self::Bools(Vec::new()),
            DataType::String => Self::Strings(Vec::new()),
            DataType::Int4 => signed(4),
            DataType::Int8 => signed(8),
            DataType::Int16 => signed(16),
            DataType::Int32 => signed(32),
            DataType::Int64 => Self::Ints(Vec::new(), i64::MIN, i64::MAX),
            DataType::Uint1 => unsigned(1),
            DataType::Uint2 => unsigned(2),
            DataType::Uint3 => unsigned(3),
            DataType::Uint4 => unsigned(4),
            DataType::Uint6 => unsigned(6),
            DataType::Uint8 => unsigned(8),
            DataType::Uint16 => unsigned(16),
            DataType::Uint32 => unsigned(32),
            DataType::Uint64 => Self::Ints(Vec::new(), 0, i64::MAX),
            DataType::UnusedType | DataType::Float8e4m3fn | DataType::Float8e5m2 => Self::None,
        }
    }

    fn words(&self) -> &'static str {
        match self {
            Self::Floats(_) | Self::Doubles(_) => "a number",
            Self::Ints(..) => "an integer that fits the type",
            Self::Bools(_) => "`true` or `false`",
            Self::Strings(_) => "a text",
            Self::None => "a type that has literals",
        }
    }

    fn push(&mut self, token: &Token<'_>) -> Option<()> {
        match (self, token) {
            (Self::Floats(v), Token::Number(x) | Token::Name(x)) => v.push(float(x)? as f32),
            (Self::Doubles(v), Token::Number(x) | Token::Name(x)) => v.push(float(x)?),
            (Self::Ints(v, least, most), Token::Number(x)) => {
                v.push(x.parse().ok().filter(|x| (*least..=*most).contains(x))?);
            }
            (Self::Bools(v), Token::Name("true")) => v.push(true),
            (Self::Bools(v), Token::Name("false")) => v.push(false),
            (Self::Strings(v), Token::Text(text)) => v.push(text.clone()),
            _ => return None,
        }
        Some(())
    }

    fn finish(self) -> tensor_value::Value {
        use tensor_value::Value as V;
        match self {
            Self::Floats(values) => V::Floats(tensor_value::RepeatedFloats { values }),
            Self::Doubles(values) => V::Doubles(tensor_value::RepeatedDoubles { values }),
            Self::Ints(values, ..) => {
                match values.iter().map(|&x| i32::try_from(x)).collect::<Result<Vec<_>, _>>() {
                    Ok(values) => V::Ints(tensor_value::RepeatedInts { values }),
                    Err(_) => V::LongInts(tensor_value::RepeatedLongInts { values }),
                }
            }
            Self::Bools(values) => V::Bools(tensor_value::RepeatedBools { values }),
            Self::Strings(values) => V::Strings(tensor_value::RepeatedStrings { values }),
            Self::None => V::Ints(tensor_value::RepeatedInts { values: Vec::new() }),
        }
    }
}

/// A float: decimal, hexadecimal (`-0x1.8p-3`), `inf` or `nan`.
fn float(text: &str) -> Option<f64> {
    let (negative, magnitude) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let value = match magnitude.strip_prefix("0x").or_else(|| magnitude.strip_prefix("0X")) {
        Some(digits) => hexadecimal(digits)?,
        None if magnitude.eq_ignore_ascii_case("inf") => f64::INFINITY,
        None if magnitude.eq_ignore_ascii_case("nan") => f64::NAN,
        None if magnitude.starts_with(|c: char| c.is_ascii_digit() || c == '.') => magnitude.parse().ok()?,
        None => return None,
    };
    Some(if negative { -value } else { value })
}

/// What follows `0x`: digits, a point, digits, and a power of two. Exact up to 60 bits, which is more than a double has.
fn hexadecimal(text: &str) -> Option<f64> {
    let (digits, exponent) = text.split_once(['p', 'P']).unwrap_or((text, "0"));
    let mut exponent: i32 = exponent.parse().ok().filter(|e: &i32| e.abs() < 1 << 16)?;
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let significant = whole.len() + fraction.len();
    if !(1..=15).contains(&significant) {
        return None;
    }
    let mut mantissa = 0_u64;
    for digit in whole.chars().chain(fraction.chars()) {
        mantissa = mantissa << 4 | u64::from(digit.to_digit(16)?);
    }
    exponent -= 4 * i32::try_from(fraction.len()).ok()?;
    // In two steps, each of which a double can hold: what is left is rounded once.
    let half = exponent / 2;
    Some(mantissa as f64 * 2.0_f64.powi(half) * 2.0_f64.powi(exponent - half))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(ops: &str) -> String {
        format!("program(1.3)\n{{\n    func main<ios18>(tensor<fp32, [4]> x) {{\n{ops}\n}} -> (y);\n}}")
    }

    fn ops(text: &str) -> Vec<mil::Operation> {
        let program = parse(body(text).as_bytes(), "").unwrap();
        program.functions["main"].block_specializations["CoreML8"].operations.clone()
    }

    fn value(text: &str) -> mil::Value {
        ops(&format!("fp32 c = const()[val = {text}];")).remove(0).attributes.remove("val").unwrap()
    }

    fn tensor(text: &str) -> tensor_value::Value {
        match value(text).value {
            Some(Contents::ImmediateValue(ImmediateValue { value: Some(Immediate::Tensor(tensor)) })) => {
                tensor.value.unwrap()
            }
            other => panic!("{other:?}"),
        }
    }

    fn refused(ops: &str) -> (usize, usize, String) {
        let error = parse(body(ops).as_bytes(), "").unwrap_err();
        (error.line, error.column, error.reason)
    }

    #[test]
    fn hexadecimal_floats_are_those_of_c() {
        // Expected: what Python's float.fromhex says.
        let cases = [
            ("0x1p+1", 2.0),
            ("-0x1.8p-3", -0.1875),
            ("0x0p+0", 0.0),
            ("0x1.5p-17", 1.001_358_032_226_562_5e-5),
            ("0x1p-24", 5.960_464_477_539_063e-8),
            ("0x1.fffffep+127", f64::from(f32::MAX)),
            ("0x1p-149", f64::from(f32::from_bits(1))),
            ("0x1.99999ap-4", f64::from(0.1_f32)),
            ("0x1.fffffffffffffp+1023", f64::MAX),
            ("0x0.0000000000001p-1022", f64::from_bits(1)),
            ("1.5e-3", 0.0015),
            ("-7", -7.0),
        ];
        for (text, expected) in cases {
            assert_eq!(float(text).map(f64::to_bits), Some(expected.to_bits()), "{text}");
        }
        assert_eq!(float("-0x0p+0").map(f64::to_bits), Some((-0.0_f64).to_bits()));
        assert_eq!((float("-inf"), float("inf")), (Some(f64::NEG_INFINITY), Some(f64::INFINITY)));
        assert!(float("nan").is_some_and(f64::is_nan));
        for text in ["", "0x", "0x1.2.3", "0x1p", "0x1p99999", "infinity", "x", "--1", "0xg"] {
            assert_eq!(float(text), None, "{text}");
        }
    }

    #[test]
    fn literals_of_every_type_have_their_elements() {
        use tensor_value::Value as V;
        let floats = |values: &[f32]| V::Floats(tensor_value::RepeatedFloats { values: values.to_vec() });
        let ints = |values: &[i32]| V::Ints(tensor_value::RepeatedInts { values: values.to_vec() });
        assert_eq!(tensor("fp16(0x1p+1)"), floats(&[2.0]));
        assert_eq!(tensor("tensor<fp16, []>(0x1p+1)"), floats(&[2.0]));
        assert_eq!(
            tensor("tensor<fp32, [2, 2]>([[0x1p+0, -0x1p-1], [inf, 3]])"),
            floats(&[1.0, -0.5, f32::INFINITY, 3.0])
        );
        assert_eq!(tensor("tensor<fp32, [0]>([])"), floats(&[]));
        assert_eq!(tensor("tensor<int32, [3]>([1, -2, 2147483647])"), ints(&[1, -2, i32::MAX]));
        assert_eq!(tensor("uint4(15)"), ints(&[15]));
        let long = tensor_value::RepeatedLongInts { values: vec![1 << 40] };
        assert_eq!(tensor("int64(1099511627776)"), V::LongInts(long));
        let bools = tensor_value::RepeatedBools { values: vec![true, false] };
        assert_eq!(tensor("tensor<bool, [2]>([true, false])"), V::Bools(bools));
        let strings = tensor_value::RepeatedStrings { values: vec!["a \"b\"\\\n\u{e9}".into()] };
        assert_eq!(tensor(r#"string("a \"b\"\\\n\xc3\xa9")"#), V::Strings(strings));
    }

    #[test]
    fn lists_hold_plain_and_typed_elements() {
        for text in [
            r#"list<string, 2>(("cat", "dog"))"#,
            r#"list<tensor<string, []>, 2>(["cat", "dog"])"#,
            r#"list<string, 2>((string("cat"), string("dog")))"#,
        ] {
            let Some(Contents::ImmediateValue(ImmediateValue { value: Some(Immediate::List(list)) })) =
                value(text).value
            else {
                panic!("{text}");
            };
            assert_eq!(list.values.len(), 2, "{text}");
        }
    }

    #[test]
    fn weights_lie_below_the_folder_of_their_model() {
        let text = r#"tensor<fp32, [4]>(BLOBFILE(path = string("@model_path/weights/weight.bin"), offset = uint64(64)))"#;
        let older = r#"tensor<fp32, [4]>(BLOBFILE(path = tensor<string, []>("@model_path/weights/weight.bin"), offset = tensor<uint64, []>(64)))"#;
        for text in [text, older] {
            let Some(Contents::BlobFileValue(blob)) = value(text).value else { panic!("{text}") };
            assert_eq!((blob.file_name.as_str(), blob.offset), ("@model_path/weights/weight.bin", 64));
        }
        let text = body(&format!("fp32 c = const()[val = {text}];"));
        let program = parse(text.as_bytes(), "model1/").unwrap();
        assert!(format!("{program:?}").contains("@model_path/model1/weights/weight.bin"));
    }

    #[test]
    fn ops_have_arguments_attributes_outputs_and_blocks() {
        let found = ops(
            "tensor<fp32, [2]> a, tensor<fp32, [2]> b = split(axis = int32(0), num_splits = n, x = x)[name = string(\"s\")];
            tensor<fp32, [4]> c = concat(axis = int32(0), values = (a, b, a))[name = string(\"c\")];
            write_state(data = c, input = memory)[name = string(\"w\")];
            int32 end, tensor<fp32, [?]> y = while_loop(loop_vars = (n, x))
                (int32 i, tensor<fp32, [?]> v) {
                    bool go = less(x = i, y = n);
                } -> (go)
                (int32 i, tensor<fp32, [?]> v) {
                } -> (i, v);",
        );
        let kinds: Vec<_> = found.iter().map(|op| op.r#type.as_str()).collect();
        assert_eq!(kinds, ["split", "concat", "write_state", "while_loop"]);
        assert_eq!(found[0].outputs.len(), 2);
        assert_eq!(found[1].inputs["values"].arguments.len(), 3);
        assert!(found[2].outputs.is_empty() && found[2].attributes.contains_key("name"));
        let [condition, step] = &found[3].blocks[..] else { panic!("two blocks") };
        assert_eq!((condition.operations.len(), &condition.outputs[..]), (1, &["go".to_owned()][..]));
        assert_eq!((step.inputs.len(), step.outputs.len()), (2, 2));
    }

    #[test]
    fn attributes_of_programs_and_functions_are_passed_over() {
        let text = r#"program(1.0)
[buildInfo = dict<tensor<string, []>, tensor<string, []>>({{"a](", "3510.2.1"}})]
{
    func main<ios16>(tensor<fp32, [?]> x) [FlexibleShapeInformation = tuple<tuple<string, dict<string, tensor<int32, [?]>>>>((("RangeDims", {{"x", [[1, -1]]}})))] {
        } -> (x);
    func second<ios26>(state<tensor<fp16, [1, 2]>> m) {} -> ();
}"#;
        let program = parse(text.as_bytes(), "").unwrap();
        assert_eq!(program.functions["main"].opset, "CoreML6");
        assert_eq!(program.functions["second"].opset, "CoreML9");
        assert_eq!(program.functions["second"].inputs.len(), 1);
    }

    #[test]
    fn errors_say_where_and_what() {
        let (line, column, reason) = refused("    fp32 c = const()[val = fp32(true)];");
        assert_eq!((line, column), (4, 33));
        assert_eq!(reason, "expected a number, found `true`");
        let cases = [
            (
                "tensor<fp32, [2]> c = const()[val = tensor<fp32, [2]>([1])];",
                "1 elements where the type says 2",
            ),
            ("int8 c = const()[val = int8(128)];", "expected an integer that fits the type"),
            ("fp32 c = const()[val = fp32(1), val = fp32(2)];", "a second `val`"),
            ("fp9 c = const();", "the type `fp9` is not known"),
            ("fp32 c = const()[] x", "expected `;`"),
            ("fp32 c = relu(x = );", "expected the name of a value, or a value, found `)`"),
            ("fp32 c = relu(x = x y);", "expected `,` or `)`"),
            ("fp32 c = const()[val = string(\"a)];", "the text has no end"),
            ("fp32 c = relu(x = \u{e9});", "the byte 0xc3"),
            ("fp32 c = const()[val = tensor<fp32, [?]>([1])];", "a constant of unknown shape"),
            ("fp32 c = const()[val = fp32(BLOBFILE(path = string(\"a\")))];", "a `path` and an `offset`"),
        ];
        for (ops, wanted) in cases {
            let (line, _, reason) = refused(ops);
            assert!(line == 4 && reason.contains(wanted), "{ops}: line {line}: {reason}");
        }
        for (text, wanted) in [
            ("", "expected `program`"),
            ("program(2.0) {}", "version 2.0"),
            ("program(1.0) {} x", "expected the end"),
            ("program(1.0) [a = (", "the attributes have no end"),
            ("program(1.0) { func f<ios3>() {} -> (); }", "the opset `ios3`"),
            ("program(1.0) { func f<ios18>() {} -> (); func f<ios18>() {} -> (); }", "a second function `f`"),
        ] {
            let error = parse(text.as_bytes(), "").unwrap_err().to_string();
            assert!(error.contains(wanted), "{text}: {error}");
        }
    }

    #[test]
    fn time_grows_with_the_text_and_no_faster() {
        // A million elements on a million lines: were each to count the lines before it, this would take hours.
        let elements = "0x1p+0,\n".repeat(1 << 20);
        let text = format!("tensor<fp32, [1048577]>([{elements}1])");
        let tensor_value::Value::Floats(floats) = tensor(&text) else { panic!("floats") };
        assert_eq!(floats.values.len(), (1 << 20) + 1);
    }

    #[test]
    fn depth_is_limited() {
        let deep = "list<".repeat(100_000);
        assert!(refused(&format!("{deep} c = const();")).2.contains("nested deeper"));
        let deep = "cond(pred = p) () {".repeat(100_000);
        assert!(refused(&format!("fp32 y = {deep}")).2.contains("nested deeper"));
        let deep = "fp32 y = cond(pred = p) () {".repeat(100_000);
        assert!(refused(&deep).2.contains("nested deeper"));
        let (ones, deep) = ("1, ".repeat(1 << 20), "[".repeat(1 << 20));
        let many = refused(&format!("fp32 y = const()[val = tensor<fp32, [{ones} 1]>({deep}"));
        assert!(many.2.contains("nested deeper"), "{}", many.2);
        assert!(refused(&format!("fp32 y = const()[val = fp32({deep}")).2.contains("expected a number"));
    }
}
