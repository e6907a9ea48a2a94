//! Strings that end a text.

/// Holds text back while it might be the beginning of a string that ends it.
pub(crate) struct StopStrings {
    strings: Vec<String>,
    held: String,
}

/// What became of a piece of text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Passed {
    /// This much may be shown.
    Text(String),
    /// This much may be shown, and then the text ends.
    Stop(String),
}

impl StopStrings {
    /// Empty strings end nothing.
    pub(crate) fn new(strings: impl IntoIterator<Item = String>) -> Self {
        Self { strings: strings.into_iter().filter(|s| !s.is_empty()).collect(), held: String::new() }
    }

    pub(crate) fn push(&mut self, text: &str) -> Passed {
        self.held.push_str(text);
        let first = self.strings.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = first {
            self.held.truncate(at);
            return Passed::Stop(std::mem::take(&mut self.held));
        }
        // The longest end of the text that begins one of the strings.
        let risky = (0..self.held.len())
            .filter(|&i| self.held.is_char_boundary(i))
            .find(|&i| self.strings.iter().any(|stop| stop.starts_with(&self.held[i..])))
            .unwrap_or(self.held.len());
        let rest = self.held.split_off(risky);
        Passed::Text(std::mem::replace(&mut self.held, rest))
    }

    /// What was held back, at the end.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stops(strings: &[&str]) -> StopStrings {
        StopStrings::new(strings.iter().map(|s| (*s).to_owned()))
    }

    #[test]
    fn a_stop_string_is_found_across_pieces_and_not_shown() {
        let mut stop = stops(&["\n\nUser:"]);
        assert_eq!(stop.push("Yes.\n"), Passed::Text("Yes.".into()));
        assert_eq!(stop.push("\nUs"), Passed::Text(String::new()));
        assert_eq!(stop.push("er: more"), Passed::Stop(String::new()));
    }

    #[test]
    fn what_only_looked_like_one_is_shown() {
        let mut stop = stops(&["</s>"]);
        assert_eq!(stop.push("a <"), Passed::Text("a ".into()));
        assert_eq!(stop.push("b>"), Passed::Text("<b>".into()));
        assert_eq!(stop.push(" </"), Passed::Text(" ".into()));
        assert_eq!(stop.finish(), "</");
    }

    #[test]
    fn the_earliest_of_several_counts() {
        assert_eq!(stops(&["c", "bc"]).push("abcd"), Passed::Stop("a".into()));
    }

    proptest! {
        /// Cut as one likes, the text shown is what stands before the first stop string of the whole.
        #[test]
        fn pieces_show_what_the_whole_would(text in "[ab]{0,30}", cuts in prop::collection::vec(1_usize..4, 30)) {
            let strings = ["aab", "bb"];
            let whole = strings.iter().filter_map(|s| text.find(s)).min().map_or(text.as_str(), |at| &text[..at]);
            let (mut stop, mut shown, mut rest, mut stopped) = (stops(&strings), String::new(), text.as_str(), false);
            for cut in cuts {
                let (piece, tail) = rest.split_at(cut.min(rest.len()));
                rest = tail;
                match stop.push(piece) {
                    Passed::Text(text) => shown.push_str(&text),
                    Passed::Stop(text) => {
                        shown.push_str(&text);
                        stopped = true;
                        break;
                    }
                }
            }
            prop_assume!(stopped || rest.is_empty());
            if !stopped {
                shown.push_str(&stop.finish());
            }
            prop_assert_eq!(shown, whole);
        }
    }
}
