//! The table in `docs/conformance.md`: a row per file of tests, of the last run that had this file.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, ensure};

use super::{PLANTED, Planted, Tally};

const BEGIN: &str = "<!-- ledger: written by `cargo xtask conformance --ledger` -->\n";
const END: &str = "<!-- end of ledger -->\n";

/// The numbers of a row, in the order of their columns.
const COLUMNS: [&str; 11] = [
    "cases",
    "predicted",
    "passed",
    "vacuous",
    "refused",
    "failed",
    "skipped",
    "seconds",
    "planted",
    "skewed passes",
    "zeros pass",
];

/// One row, but for the file's name.
struct Row {
    date: String,
    sample: String,
    numbers: [u64; COLUMNS.len()],
    refused: String,
}

impl Row {
    fn parse(line: &str) -> Option<(String, Self)> {
        let mut cells = line.trim().strip_prefix("| `")?.strip_suffix('|')?.split('|').map(str::trim);
        let file = cells.next()?.strip_suffix('`')?.to_owned();
        let (date, sample) = (cells.next()?.to_owned(), cells.next()?.to_owned());
        let mut numbers = [0; COLUMNS.len()];
        for number in &mut numbers {
            *number = cells.next()?.parse().ok()?;
        }
        Some((file, Self { date, sample, numbers, refused: cells.next()?.to_owned() }))
    }

    fn of(tally: &Tally, date: &str, sample: &str, planted: [u64; PLANTED.len() + 1]) -> Self {
        let refused: Vec<String> = tally.refused.iter().map(|(op, n)| format!("{op} {n}")).collect();
        Self {
            date: date.to_owned(),
            sample: sample.to_owned(),
            numbers: [
                tally.collected,
                tally.predicted,
                tally.passed,
                tally.vacuous,
                tally.refusals(),
                tally.failed,
                tally.skipped,
                tally.seconds.round() as u64,
                planted[0],
                planted[1],
                planted[2],
            ],
            refused: refused.join(", ").replace('|', "/"),
        }
    }

    fn line(&self, name: &str) -> String {
        let numbers = self.numbers.map(|number| number.to_string()).join(" | ");
        format!("| {name} | {} | {} | {numbers} | {} |\n", self.date, self.sample, self.refused)
    }
}

/// Puts the rows of a run into the table, where they replace those of the same files, and sums it up anew.
pub(super) fn write(
    path: &Path,
    sample: &str,
    files: &BTreeMap<&str, Tally>,
    planted: &[Planted],
) -> anyhow::Result<()> {
    let page = std::fs::read_to_string(path).with_context(|| format!("{} is missing", path.display()))?;
    let output = std::process::Command::new("date").args(["-u", "+%Y-%m-%d"]).output()?;
    let date = String::from_utf8(output.stdout)?;
    // Of how many, and how many pass with each wrong engine.
    let counts = |file: &str| {
        let of = planted.first().map(|planted| &planted.of);
        let columns = of.into_iter().chain(planted.iter().map(|planted| &planted.passed));
        let mut counts = [0; PLANTED.len() + 1];
        counts
            .iter_mut()
            .zip(columns)
            .for_each(|(count, files)| *count = files.get(file).copied().unwrap_or(0));
        counts
    };
    let rows: Vec<_> = files
        .iter()
        .map(|(file, tally)| (*file, Row::of(tally, date.trim(), sample, counts(file))))
        .collect();
    std::fs::write(path, merged(&page, rows)?)?;
    Ok(())
}

fn merged<'a>(page: &str, fresh: impl IntoIterator<Item = (&'a str, Row)>) -> anyhow::Result<String> {
    let (head, rest) = page.split_once(BEGIN).context("docs/conformance.md has no place for the ledger")?;
    let (table, tail) = rest.split_once(END).context("the ledger of docs/conformance.md has no end")?;
    let mut rows = BTreeMap::new();
    // The first three lines are the table's head, the last one is the sum.
    for line in table.lines().filter(|line| line.starts_with("| `")) {
        let (file, row) = Row::parse(line).with_context(|| format!("not a row of the ledger: {line}"))?;
        rows.insert(file, row);
    }
    rows.extend(fresh.into_iter().map(|(file, row)| (file.to_owned(), row)));
    ensure!(!rows.is_empty(), "no file of tests has run");
    let mut sum = Row {
        date: String::new(),
        sample: String::new(),
        numbers: [0; COLUMNS.len()],
        refused: String::new(),
    };
    for row in rows.values() {
        for (sum, number) in sum.numbers.iter_mut().zip(row.numbers) {
            *sum += number;
        }
    }
    let mut text =
        format!("{head}{BEGIN}\n| file | date | sample | {} | refused ops |\n", COLUMNS.join(" | "));
    text.push_str(&"|---".repeat(COLUMNS.len() + 4));
    text.push_str("|\n");
    for (file, row) in &rows {
        text.push_str(&row.line(&format!("`{file}`")));
    }
    text.push_str(&sum.line("all"));
    text.push('\n');
    text.push_str(END);
    text.push_str(tail);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(passed: u64) -> Row {
        let tally = Tally {
            collected: 9,
            predicted: 8,
            passed,
            refused: BTreeMap::from([("lstm".to_owned(), 2)]),
            ..Tally::default()
        };
        Row::of(&tally, "2026-01-02", "1/40", [5, 1, 0])
    }

    #[test]
    fn rows_of_other_files_stay_and_the_sum_is_of_all() {
        let page = format!("# Head\n{BEGIN}{END}tail\n");
        let page = merged(&page, [("b.py", row(6)), ("a.py", row(1))]).unwrap();
        let page = merged(&page, [("a.py", row(7))]).unwrap();
        assert!(page.starts_with("# Head\n") && page.ends_with("tail\n"), "{page}");
        assert!(
            page.contains(
                "| `a.py` | 2026-01-02 | 1/40 | 9 | 8 | 7 | 0 | 2 | 0 | 0 | 0 | 5 | 1 | 0 | lstm 2 |"
            )
        );
        assert!(page.contains("| all |  |  | 18 | 16 | 13 | 0 | 4 | 0 | 0 | 0 | 10 | 2 | 0 |  |"), "{page}");
        assert_eq!(page.matches("a.py").count(), 1);
    }

    #[test]
    fn a_page_without_a_place_or_with_a_broken_row_is_refused() {
        merged("# Head\n", [("a.py", row(1))]).unwrap_err();
        merged(&format!("{BEGIN}| `a.py` | x |\n{END}"), [("b.py", row(1))]).unwrap_err();
        merged(&format!("{BEGIN}{END}"), []).unwrap_err();
    }
}
