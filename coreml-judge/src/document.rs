//! TOML and YAML as one tree in which every value knows its place, so that a fault can be told with its line.

use saphyr_parser::{Event, Parser, ScalarStyle};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::constitution::Fault;

/// A value and where it begins.
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) value: Value,
}

/// From 1, the column in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) line: usize,
    pub(crate) column: usize,
}

pub(crate) enum Value {
    Text(String),
    Number(f64),
    List(Vec<Node>),
    Table(Vec<Entry>),
    /// What no constitution has, by its name.
    Other(&'static str),
}

pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) place: Place,
    pub(crate) node: Node,
}

impl Value {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Text(_) => "text",
            Self::Number(_) => "a number",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
            Self::Other(name) => name,
        }
    }
}

/// What a document means, and what is wrong with its syntax. Only a document without such faults has a meaning worth reading.
pub(crate) fn toml(text: &str) -> Result<Node, Vec<Fault>> {
    let lines = Lines::new(text);
    let (table, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok(Node { place: Place { line: 1, column: 1 }, value: from_table(table.get_ref(), &lines) });
    }
    let fault = |error: toml::de::Error| {
        lines.place(error.span().map_or(0, |span| span.start)).fault(error.message())
    };
    Err(errors.into_iter().map(fault).collect())
}

fn from_table(table: &DeTable<'_>, lines: &Lines<'_>) -> Value {
    let mut entries: Vec<Entry> = table
        .iter()
        .map(|(key, value)| Entry {
            key: key.get_ref().to_string(),
            place: lines.place(key.span().start),
            node: from_value(value, lines),
        })
        .collect();
    // As they are written, not as the library sorts them.
    entries.sort_by_key(|entry| (entry.place.line, entry.place.column));
    Value::Table(entries)
}

fn from_value(value: &Spanned<DeValue<'_>>, lines: &Lines<'_>) -> Node {
    let place = lines.place(value.span().start);
    let value = match value.get_ref() {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => {
            number.as_str().parse().map_or(Value::Other("an integer of that size"), Value::Number)
        }
        DeValue::Integer(_) => Value::Other("an integer that is not decimal"),
        DeValue::Float(number) => number.as_str().parse().map_or(Value::Other("a float"), Value::Number),
        DeValue::Boolean(_) => Value::Other("a boolean"),
        DeValue::Datetime(_) => Value::Other("a date"),
        DeValue::Array(array) => Value::List(array.iter().map(|one| from_value(one, lines)).collect()),
        DeValue::Table(table) => from_table(table, lines),
    };
    Node { place, value }
}

/// Where lines begin, so that a byte's place is found without counting from the start.
struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text, starts }
    }

    fn place(&self, byte: usize) -> Place {
        let line = self.starts.partition_point(|&start| start <= byte).max(1);
        let start = self.starts[line - 1];
        let column = self.text.get(start..byte).map_or(1, |before| before.chars().count() + 1);
        Place { line, column }
    }
}

/// Deeper than any constitution; a bound on recursion.
const DEEPEST: usize = 16;

/// As [`toml`]. Anchors, aliases and tags are refused: a constitution is read by people, and aliases multiply.
pub(crate) fn yaml(text: &str) -> Result<Node, Vec<Fault>> {
    let mut events = Parser::new_from_str(text);
    let mut root = None;
    loop {
        let (event, span) = match events.next_event() {
            None => break,
            Some(Err(error)) => return Err(scan_fault(&error)),
            Some(Ok(found)) => found,
        };
        match event {
            Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing => {}
            Event::StreamEnd => break,
            _ if root.is_some() => {
                return Err(vec![place(span.start).fault("a second document; a file has one constitution")]);
            }
            event => root = Some(from_events(event, place(span.start), &mut events, 0)?),
        }
    }
    root.ok_or_else(|| vec![Place { line: 1, column: 1 }.fault("the file is empty")])
}

fn from_events<'a>(
    event: Event<'a>,
    at: Place,
    events: &mut Parser<'a, saphyr_parser::StrInput<'a>>,
    depth: usize,
) -> Result<Node, Vec<Fault>> {
    let refuse = |what: &str| Err(vec![at.fault(what)]);
    if depth > DEEPEST {
        return refuse("nested too deeply");
    }
    let value = match event {
        Event::Alias(_) => return refuse("an alias; write the text out"),
        Event::Scalar(_, _, 1.., _) | Event::SequenceStart(1.., _) | Event::MappingStart(1.., _) => {
            return refuse("an anchor; write the text out where it is needed");
        }
        Event::Scalar(_, _, _, Some(_))
        | Event::SequenceStart(_, Some(_))
        | Event::MappingStart(_, Some(_)) => {
            return refuse("a tag; a constitution has text, numbers, lists and tables");
        }
        Event::Scalar(text, style, _, _) => scalar(&text, style),
        Event::SequenceStart(..) => {
            let mut list = Vec::new();
            loop {
                match next(events, at)? {
                    (Event::SequenceEnd, _) => break,
                    (event, at) => list.push(from_events(event, at, events, depth + 1)?),
                }
            }
            Value::List(list)
        }
        Event::MappingStart(..) => {
            let mut entries = Vec::new();
            loop {
                let (event, place) = next(events, at)?;
                if event == Event::MappingEnd {
                    break;
                }
                let key = match event {
                    Event::Scalar(text, ..) => text.into_owned(),
                    _ => return Err(vec![place.fault("a key that is not text")]),
                };
                let (event, at) = next(events, place)?;
                entries.push(Entry { key, place, node: from_events(event, at, events, depth + 1)? });
            }
            Value::Table(entries)
        }
        Event::Nothing
        | Event::StreamStart
        | Event::StreamEnd
        | Event::DocumentStart(_)
        | Event::DocumentEnd
        | Event::SequenceEnd
        | Event::MappingEnd => return refuse("the file ends in the middle of a value"),
    };
    Ok(Node { place: at, value })
}

fn next<'a>(
    events: &mut Parser<'a, saphyr_parser::StrInput<'a>>,
    at: Place,
) -> Result<(Event<'a>, Place), Vec<Fault>> {
    match events.next_event() {
        Some(Ok((event, span))) => Ok((event, place(span.start))),
        Some(Err(error)) => Err(scan_fault(&error)),
        None => Err(vec![at.fault("the file ends in the middle of a value")]),
    }
}

fn scan_fault(error: &saphyr_parser::ScanError) -> Vec<Fault> {
    vec![place(*error.marker()).fault(error.info())]
}

fn place(marker: saphyr_parser::Marker) -> Place {
    Place { line: marker.line(), column: marker.col() + 1 }
}

/// YAML 1.2's core schema, as far as it matters here.
fn scalar(text: &str, style: ScalarStyle) -> Value {
    if style != ScalarStyle::Plain {
        return Value::Text(text.to_owned());
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Other("nothing"),
        "true" | "True" | "TRUE" | "false" | "False" | "FALSE" => Value::Other("a boolean"),
        _ => {
            // `inf` and `nan` are words in YAML, and Rust would take them.
            let number = text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c));
            match text.parse() {
                Ok(found) if number => Value::Number(found),
                _ => Value::Text(text.to_owned()),
            }
        }
    }
}

impl Place {
    pub(crate) fn fault(self, what: impl Into<String>) -> Fault {
        Fault { line: self.line, column: self.column, what: what.into() }
    }
}
