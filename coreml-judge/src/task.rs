//! What is judged: what was asked, the work, and what else is known.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// A piece of work and what it answers to. None of its texts is trusted.
///
/// ```
/// use coreml_judge::Task;
///
/// let task = Task::new("Describe the function.", "It returns the length. It never fails.")
///     .with_evidence("source", "fn len(&self) -> usize");
/// assert_eq!(task.passages().len(), 2);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Task {
    /// What was asked for; may be empty.
    #[serde(default)]
    pub asked: String,
    /// What was made of it.
    pub work: String,
    /// What the work can be held against.
    #[serde(default)]
    pub evidence: Vec<Evidence>,
}

/// Something that the work can be held against.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// Where it is from.
    pub name: String,
    /// What it says.
    pub text: String,
}

impl Task {
    /// A work without evidence.
    pub fn new(asked: impl Into<String>, work: impl Into<String>) -> Self {
        Self { asked: asked.into(), work: work.into(), evidence: Vec::new() }
    }

    /// With something to hold the work against.
    #[must_use]
    pub fn with_evidence(mut self, name: impl Into<String>, text: impl Into<String>) -> Self {
        self.evidence.push(Evidence { name: name.into(), text: text.into() });
        self
    }

    /// The parts of the work that are judged, and quoted: sentences, and lines of listings, without the white space around them.
    /// Together they have every character of the work that is not white space.
    #[must_use]
    pub fn passages(&self) -> Vec<Passage<'_>> {
        let mut found = Vec::new();
        for block in blocks(&self.work) {
            sentences(&self.work, block, &mut found);
        }
        let mut line = 1;
        let mut at = 0;
        found
            .into_iter()
            .map(|range| {
                line += self.work[at..range.start].matches('\n').count();
                at = range.start;
                Passage { text: &self.work[range.clone()], start: range.start, line }
            })
            .collect()
    }
}

/// A part of the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Passage<'a> {
    /// Its text, as it stands in the work.
    pub text: &'a str,
    /// Its first byte in the work.
    pub start: usize,
    /// Its first line in the work, from 1.
    pub line: usize,
}

/// Runs of lines without an empty one between them. A line that begins a list item, a heading, a row of a table or a fence begins a
/// block, and a fence ends one.
fn blocks(work: &str) -> Vec<Range<usize>> {
    let mut blocks = Vec::new();
    let mut block: Option<Range<usize>> = None;
    let mut start = 0;
    for line in work.split_inclusive('\n') {
        let end = start + line.len();
        let text = line.trim();
        let fence = text.starts_with("```") || text.starts_with("~~~");
        let alone = fence || text.starts_with(['#', '|']);
        let item = ["- ", "* ", "+ ", "> "].iter().any(|mark| text.starts_with(mark));
        if text.is_empty() || alone || item {
            blocks.extend(block.take());
        }
        if alone {
            blocks.push(start..end);
        } else if !text.is_empty() {
            block = Some(block.map_or(start, |block| block.start)..end);
        }
        start = end;
    }
    blocks.extend(block);
    blocks
}

/// A sentence ends at a full stop, a question mark or an exclamation mark before white space and a capital letter.
fn sentences(work: &str, block: Range<usize>, found: &mut Vec<Range<usize>>) {
    let text = &work[block.clone()];
    let mut start = 0;
    let mut characters = text.char_indices().peekable();
    let mut push = |range: Range<usize>| {
        let part = &text[range.clone()];
        let trimmed = part.trim();
        if !trimmed.is_empty() {
            let begin = block.start + range.start + (part.len() - part.trim_start().len());
            found.push(begin..begin + trimmed.len());
        }
    };
    while let Some((_, c)) = characters.next() {
        let Some(&(at, next)) = characters.peek() else { break };
        if matches!(c, '.' | '!' | '?') && next.is_whitespace() {
            while characters.next_if(|&(_, c)| c.is_whitespace()).is_some() {}
            if characters.peek().is_some_and(|&(_, c)| c.is_uppercase()) {
                push(start..at);
                start = at;
            }
        }
    }
    push(start..text.len());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(work: &str) -> Vec<(usize, String)> {
        let task = Task::new("", work);
        task.passages().iter().map(|p| (p.line, p.text.to_owned())).collect()
    }

    #[test]
    fn a_work_is_judged_sentence_by_sentence() {
        let work = "# A title. Really\nOne sentence, i.e. one\nwith a break. Another! And\n\n- an item\n- an item. Two\n```\nlet x = 1.0;\n```\n";
        let expected = [
            (1, "# A title."),
            (1, "Really"),
            (2, "One sentence, i.e. one\nwith a break."),
            (3, "Another!"),
            (3, "And"),
            (5, "- an item"),
            (6, "- an item."),
            (6, "Two"),
            (7, "```"),
            (8, "let x = 1.0;"),
            (9, "```"),
        ];
        assert_eq!(texts(work), expected.map(|(line, text)| (line, text.to_owned())));
        assert!(texts(" \n\u{2003}\n").is_empty());
    }

    proptest! {
        #[test]
        fn nothing_of_a_work_escapes_judgement(work in "[a-zA-Z .!?#|`\n\u{2028}é🦀-]{0,200}") {
            let task = Task::new("", work.as_str());
            let solid = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
            let passages = task.passages();
            let together: String = passages.iter().map(|p| solid(p.text)).collect();
            prop_assert_eq!(together, solid(&work));
            for passage in passages {
                prop_assert_eq!(&work[passage.start..][..passage.text.len()], passage.text);
                prop_assert_eq!(work[..passage.start].matches('\n').count() + 1, passage.line);
            }
        }
    }
}
