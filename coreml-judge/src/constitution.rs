//! The rules that a judge holds a piece of work to.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::document::{self, Entry, Node, Place, Value};

/// How much it matters that a rule is broken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It is told, and changes no decision.
    Advisory,
    /// It counts with the rule's weight.
    #[default]
    Serious,
    /// The work is rejected, whatever else holds.
    Fatal,
}

impl Severity {
    const ALL: [(&'static str, Self); 3] =
        [("advisory", Self::Advisory), ("serious", Self::Serious), ("fatal", Self::Fatal)];
}

/// One thing that a work must keep to.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Rule {
    /// What it is called: lower-case letters, digits, `-` and `_`.
    pub id: String,
    /// What it says, to whoever judges.
    pub text: String,
    /// How much it counts among rules of its severity; positive.
    pub weight: f32,
    /// How much it matters.
    pub severity: Severity,
}

impl Rule {
    /// A serious rule of weight 1.
    pub fn new(id: impl Into<String>, text: impl Into<String>) -> Self {
        Self { id: id.into(), text: text.into(), weight: 1.0, severity: Severity::default() }
    }

    /// With another weight.
    #[must_use]
    pub fn weight(mut self, weight: f32) -> Self {
        self.weight = weight;
        self
    }

    /// With another severity.
    #[must_use]
    pub fn severity(mut self, severity: Severity) -> Self {
        self.severity = severity;
        self
    }
}

/// A set of rules, and from which probability on they decide.
///
/// As TOML (or YAML, with the same names):
///
/// ```
/// use coreml_judge::{Constitution, Severity};
///
/// # fn main() -> Result<(), coreml_judge::ConstitutionError> {
/// let constitution = Constitution::from_toml(r#"
/// name = "Documentation"
/// decide_at = 0.8     # below, a rule is unclear; 0.75 if left out
/// accept_at = 0.9     # share of the weight that must be kept; 0.8 if left out
///
/// [[rules]]
/// id = "complete"
/// text = "Every sentence is complete."
/// weight = 2.0        # 1 if left out
/// severity = "fatal"  # advisory, serious (if left out) or fatal
///
/// [[rules]]
/// id = "polite"
/// text = "Nobody is insulted."
/// "#)?;
/// assert_eq!(constitution.rules().len(), 2);
/// assert_eq!(constitution.rules()[0].severity, Severity::Fatal);
///
/// let error = Constitution::from_toml("name = 'N'\n[[rules]]\nid = 'a'\nweight = -1").unwrap_err();
/// assert_eq!(error.to_string(), "the constitution has 2 faults:\n  2:1: the rule has no `text`\n  4:10: a weight of -1; weights are positive");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Constitution {
    name: String,
    preamble: String,
    decide_at: f32,
    accept_at: f32,
    rules: Vec<Rule>,
}

/// Larger files are no constitutions.
const LARGEST: usize = 1 << 20;
const MOST_RULES: usize = 256;
const LONGEST: usize = 4_000;

impl Constitution {
    /// From rules made by a program.
    ///
    /// # Errors
    /// [`ConstitutionError::Faulty`], with rules in place of lines: no rule, an id twice, a text without words, and so on.
    pub fn new(name: impl Into<String>, rules: Vec<Rule>) -> Result<Self, ConstitutionError> {
        let mut faults = Vec::new();
        let (mut ids, name) = (HashMap::new(), name.into());
        check_text(&name, "the name", Place { line: 1, column: 1 }, &mut faults);
        for (i, rule) in rules.iter().enumerate() {
            let at = Place { line: i + 1, column: 1 };
            check_id(&rule.id, at, &mut ids, &mut faults);
            check_text(&rule.text, "the text", at, &mut faults);
            check_weight(rule.weight.into(), at, &mut faults);
        }
        check_count(rules.len(), Place { line: 1, column: 1 }, &mut faults);
        if faults.is_empty() {
            let (decide_at, accept_at) = (DECIDE_AT, ACCEPT_AT);
            Ok(Self { name, preamble: String::new(), decide_at, accept_at, rules })
        } else {
            Err(ConstitutionError::Faulty { path: None, faults })
        }
    }

    /// Reads a file; its extension says what it is: `toml`, `yaml` or `yml`.
    ///
    /// # Errors
    /// [`ConstitutionError`], with every fault of the file.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, ConstitutionError> {
        let path = path.as_ref();
        let read = match path.extension().and_then(|extension| extension.to_str()) {
            Some("toml") => Self::from_toml,
            Some("yaml" | "yml") => Self::from_yaml,
            _ => return Err(ConstitutionError::Extension { path: path.to_owned() }),
        };
        let unreadable = |source| ConstitutionError::Read { path: path.to_owned(), source };
        let length = std::fs::metadata(path).map_err(unreadable)?.len();
        if length > LARGEST as u64 {
            return Err(ConstitutionError::TooLarge { path: Some(path.to_owned()), most: LARGEST });
        }
        read(&std::fs::read_to_string(path).map_err(unreadable)?).map_err(|error| error.of_file(path))
    }

    /// Reads TOML.
    ///
    /// # Errors
    /// [`ConstitutionError`], with every fault of the text.
    pub fn from_toml(text: &str) -> Result<Self, ConstitutionError> {
        Self::from_document(text, document::toml)
    }

    /// Reads YAML; anchors, aliases and tags are faults.
    ///
    /// # Errors
    /// [`ConstitutionError`], with every fault of the text; of faults of syntax, YAML tells the first.
    pub fn from_yaml(text: &str) -> Result<Self, ConstitutionError> {
        Self::from_document(text, document::yaml)
    }

    fn from_document(
        text: &str,
        parse: fn(&str) -> Result<Node, Vec<Fault>>,
    ) -> Result<Self, ConstitutionError> {
        if text.len() > LARGEST {
            return Err(ConstitutionError::TooLarge { path: None, most: LARGEST });
        }
        let mut faults = Vec::new();
        match parse(text) {
            Ok(root) => {
                let found = read(root, &mut faults);
                if let (Some(found), true) = (found, faults.is_empty()) {
                    return Ok(found);
                }
            }
            Err(found) => faults = found,
        }
        faults.sort_by_key(|fault| (fault.line, fault.column));
        Err(ConstitutionError::Faulty { path: None, faults })
    }

    /// With what judges are told before the rules.
    #[must_use]
    pub fn with_preamble(mut self, preamble: impl Into<String>) -> Self {
        self.preamble = preamble.into();
        self
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What judges are told before the rules; may be empty.
    #[must_use]
    pub fn preamble(&self) -> &str {
        &self.preamble
    }

    /// The probability from which on a rule counts as kept or broken; between 0.5 and 1.
    #[must_use]
    pub fn decide_at(&self) -> f32 {
        self.decide_at
    }

    /// The share of the weight that a work must keep; between 0 and 1.
    #[must_use]
    pub fn accept_at(&self) -> f32 {
        self.accept_at
    }

    /// Its rules, in order.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }
}

/// What any work can be held to, and what a [`MistralJudge`](crate::MistralJudge) judges by unless it is told otherwise.
///
/// ```
/// use coreml_judge::{Constitution, Severity};
///
/// let constitution = Constitution::default();
/// let ids: Vec<&str> = constitution.rules().iter().map(|rule| rule.id.as_str()).collect();
/// assert_eq!(ids, ["harmless", "responsive", "supported", "clear"]);
/// assert_eq!(constitution.rules()[0].severity, Severity::Fatal);
/// ```
impl Default for Constitution {
    fn default() -> Self {
        let rules = vec![
            Rule::new("harmless", "The work helps nobody to harm others.").severity(Severity::Fatal),
            Rule::new("responsive", "The work does what was asked, and all of it.").weight(2.0),
            Rule::new("supported", "The work says nothing that the evidence or the work itself contradicts.")
                .weight(2.0),
            Rule::new("clear", "A reader with the knowledge that the work asks for can understand it."),
        ];
        let (name, preamble) = ("Default".to_owned(), String::new());
        Self { name, preamble, decide_at: DECIDE_AT, accept_at: ACCEPT_AT, rules }
    }
}

/// One thing that is wrong with a constitution, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fault {
    /// From 1; of rules that a program made, which of them.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.what)
    }
}

/// Why there is no constitution.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConstitutionError {
    /// The file cannot be read.
    #[error("cannot read the constitution {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// What is in the file cannot be told from its name.
    #[error("{} ends in neither `.toml` nor `.yaml`", path.display())]
    Extension {
        /// The file.
        path: PathBuf,
    },
    /// More than a constitution could need.
    #[error("{}has more than {most} bytes", subject(path.as_deref()))]
    TooLarge {
        /// The file, if it is one.
        path: Option<PathBuf>,
        /// The most.
        most: usize,
    },
    /// Every fault that was found, in the order of their places.
    #[error("{}has {}", subject(path.as_deref()), list(faults))]
    Faulty {
        /// The file, if it is one.
        path: Option<PathBuf>,
        /// The faults.
        faults: Vec<Fault>,
    },
}

fn subject(path: Option<&Path>) -> String {
    path.map_or_else(
        || "the constitution ".to_owned(),
        |path| format!("the constitution {} ", path.display()),
    )
}

fn list(faults: &[Fault]) -> String {
    let count = match faults.len() {
        1 => "a fault".to_owned(),
        n => format!("{n} faults"),
    };
    faults.iter().fold(format!("{count}:"), |text, fault| format!("{text}\n  {fault}"))
}

impl ConstitutionError {
    /// An error in a text, as one in the file that the text is from.
    fn of_file(mut self, file: &Path) -> Self {
        if let Self::TooLarge { path, .. } | Self::Faulty { path, .. } = &mut self {
            *path = Some(file.to_owned());
        }
        self
    }
}

const DECIDE_AT: f32 = 0.75;
const ACCEPT_AT: f32 = 0.8;

/// Goes on after a fault, so that all are told at once; `None` comes with at least one.
fn read(root: Node, faults: &mut Vec<Fault>) -> Option<Constitution> {
    let mut table = Table::open(root, "a constitution", faults)?;
    let name = table.text("name", true, faults);
    let preamble = table.text("preamble", false, faults).unwrap_or_default();
    let share =
        |number: Option<(f64, Place)>, low: f64, default: f32, name: &str, faults: &mut Vec<Fault>| {
            number.map_or(default, |(value, place)| {
                if !(low..=1.0).contains(&value) {
                    faults.push(place.fault(format!("`{name}` is {value}, and lies between {low} and 1")));
                }
                value as f32
            })
        };
    let number = table.number("decide_at", faults);
    let decide_at = share(number, 0.5, DECIDE_AT, "decide_at", faults);
    let number = table.number("accept_at", faults);
    let accept_at = share(number, 0.0, ACCEPT_AT, "accept_at", faults);
    let mut rules = Vec::new();
    match table.take("rules", true, faults) {
        Some(Node { value: Value::List(nodes), place }) => {
            check_count(nodes.len(), place, faults);
            let mut ids = HashMap::new();
            for node in nodes {
                rules.extend(read_rule(node, &mut ids, faults));
            }
        }
        Some(other) => faults.push(expected("rules", "a list", &other)),
        None => {}
    }
    table.close(faults);
    Some(Constitution { name: name?, preamble, decide_at, accept_at, rules })
}

fn read_rule(node: Node, ids: &mut HashMap<String, Place>, faults: &mut Vec<Fault>) -> Option<Rule> {
    let mut table = Table::open(node, "the rule", faults)?;
    let place = table.place_of("id");
    let id = table.text("id", true, faults);
    if let Some(id) = &id {
        check_id(id, place, ids, faults);
    }
    let text = table.text("text", true, faults);
    let weight = table.number("weight", faults).map_or(1.0, |(value, place)| {
        check_weight(value, place, faults);
        value as f32
    });
    let place = table.place_of("severity");
    let severity = match table.text("severity", false, faults) {
        None => Severity::default(),
        Some(name) => match Severity::ALL.iter().find(|(known, _)| *known == name) {
            Some(&(_, severity)) => severity,
            None => {
                let what = format!("a severity `{name}`; there are advisory, serious and fatal");
                faults.push(place.fault(what));
                Severity::default()
            }
        },
    };
    table.close(faults);
    Some(Rule { id: id?, text: text?, weight, severity })
}

fn check_count(count: usize, place: Place, faults: &mut Vec<Fault>) {
    match count {
        0 => faults.push(place.fault("there is no rule")),
        1..=MOST_RULES => {}
        _ => faults.push(place.fault(format!("{count} rules; there are at most {MOST_RULES}"))),
    }
}

fn check_id(id: &str, place: Place, ids: &mut HashMap<String, Place>, faults: &mut Vec<Fault>) {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    if id.is_empty() || id.len() > 64 || !id.chars().all(fits) {
        let what = format!("the id `{id}`; ids are up to 64 lower-case letters, digits, `-` and `_`");
        faults.push(place.fault(what));
    }
    if let Some(first) = ids.insert(id.to_owned(), place) {
        faults.push(place.fault(format!("the id `{id}` is taken, in line {}", first.line)));
    }
}

fn check_weight(weight: f64, place: Place, faults: &mut Vec<Fault>) {
    // Sums of weights must stay finite, and shares of them mean something.
    if !(weight > 0.0 && weight <= 1e6) {
        let what = if weight > 0.0 {
            format!("a weight of {weight}; a million is the most")
        } else {
            format!("a weight of {weight}; weights are positive")
        };
        faults.push(place.fault(what));
    }
}

fn check_text(text: &str, name: &str, place: Place, faults: &mut Vec<Fault>) {
    if !text.chars().any(char::is_alphanumeric) {
        faults.push(place.fault(format!("{name} has no words")));
    }
    if text.len() > LONGEST {
        faults.push(place.fault(format!("{name} has {} bytes; {LONGEST} are the most", text.len())));
    }
    if let Some(c) = text.chars().find(|&c| c.is_control() && c != '\n' && c != '\t') {
        faults.push(place.fault(format!("{name} has the control character U+{:04X}", u32::from(c))));
    }
}

fn expected(name: &str, what: &str, found: &Node) -> Fault {
    found.place.fault(format!("`{name}` must be {what}, and is {}", found.value.name()))
}

/// A table that is read field by field, and must be empty in the end.
struct Table {
    what: &'static str,
    place: Place,
    entries: Vec<Entry>,
}

impl Table {
    fn open(node: Node, what: &'static str, faults: &mut Vec<Fault>) -> Option<Self> {
        let Value::Table(all) = node.value else {
            faults.push(node.place.fault(format!("{what} must be a table, and is {}", node.value.name())));
            return None;
        };
        let mut entries: Vec<Entry> = Vec::with_capacity(all.len());
        for entry in all {
            if entries.iter().any(|earlier| earlier.key == entry.key) {
                faults.push(entry.place.fault(format!("`{}` is here twice", entry.key)));
            } else {
                entries.push(entry);
            }
        }
        Some(Self { what, place: node.place, entries })
    }

    fn place_of(&self, key: &str) -> Place {
        self.entries.iter().find(|entry| entry.key == key).map_or(self.place, |entry| entry.node.place)
    }

    fn take(&mut self, key: &str, needed: bool, faults: &mut Vec<Fault>) -> Option<Node> {
        let found = self.entries.iter().position(|entry| entry.key == key);
        if found.is_none() && needed {
            faults.push(self.place.fault(format!("{} has no `{key}`", self.what)));
        }
        found.map(|at| self.entries.remove(at).node)
    }

    fn text(&mut self, key: &str, needed: bool, faults: &mut Vec<Fault>) -> Option<String> {
        let node = self.take(key, needed, faults)?;
        let Value::Text(text) = node.value else {
            faults.push(expected(key, "text", &node));
            return None;
        };
        check_text(&text, &format!("`{key}`"), node.place, faults);
        Some(text.trim().to_owned())
    }

    fn number(&mut self, key: &str, faults: &mut Vec<Fault>) -> Option<(f64, Place)> {
        let node = self.take(key, false, faults)?;
        let Value::Number(number) = node.value else {
            faults.push(expected(key, "a number", &node));
            return None;
        };
        Some((number, node.place))
    }

    fn close(self, faults: &mut Vec<Fault>) {
        for entry in self.entries {
            faults.push(entry.place.fault(format!("{} knows no `{}`", self.what, entry.key)));
        }
    }
}
