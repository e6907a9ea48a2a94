//! What comes of a deliberation.

use serde::{Deserialize, Serialize};

use crate::Severity;

/// What is found of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Finding {
    /// The work keeps to it.
    Kept,
    /// The work breaks it.
    Broken,
    /// It cannot be told.
    Unclear,
}

impl Finding {
    /// All of them, in the order of a [`Distribution`].
    pub const ALL: [Self; 3] = [Self::Kept, Self::Broken, Self::Unclear];

    /// Its name, as judges write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Broken => "broken",
            Self::Unclear => "unclear",
        }
    }
}

/// How likely each finding is; the three sum to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Distribution {
    kept: f32,
    broken: f32,
    unclear: f32,
}

impl Distribution {
    /// From three weights, which need not sum to 1. `None` if one is negative or no number, or all are zero.
    ///
    /// ```
    /// use coreml_judge::{Distribution, Finding};
    ///
    /// let distribution = Distribution::new(3.0, 1.0, 0.0).expect("weights");
    /// assert_eq!(distribution.of(Finding::Kept), 0.75);
    /// assert_eq!(distribution.finding(0.75), Finding::Kept);
    /// assert_eq!(distribution.finding(0.8), Finding::Unclear);
    /// ```
    #[must_use]
    pub fn new(kept: f32, broken: f32, unclear: f32) -> Option<Self> {
        let sum = kept + broken + unclear;
        let valid = kept >= 0.0 && broken >= 0.0 && unclear >= 0.0 && sum > 0.0 && sum.is_finite();
        valid.then(|| Self { kept: kept / sum, broken: broken / sum, unclear: unclear / sum })
    }

    /// Nothing is known.
    #[must_use]
    pub fn unknown() -> Self {
        Self { kept: 0.0, broken: 0.0, unclear: 1.0 }
    }

    /// The probability of a finding.
    #[must_use]
    pub fn of(&self, finding: Finding) -> f32 {
        match finding {
            Finding::Kept => self.kept,
            Finding::Broken => self.broken,
            Finding::Unclear => self.unclear,
        }
    }

    /// Kept or broken if that is at least so likely, and likelier than the contrary; unclear otherwise.
    #[must_use]
    pub fn finding(&self, decide_at: f32) -> Finding {
        match (self.kept, self.broken) {
            (kept, broken) if kept >= decide_at && kept > broken => Finding::Kept,
            (kept, broken) if broken >= decide_at && broken > kept => Finding::Broken,
            _ => Finding::Unclear,
        }
    }

    /// The probability of the likeliest finding.
    #[must_use]
    pub fn confidence(&self) -> f32 {
        self.kept.max(self.broken).max(self.unclear)
    }

    /// The mean of several: what a panel thinks whose members are trusted alike. `None` of none.
    #[must_use]
    pub fn mean(all: &[Self]) -> Option<Self> {
        let sum = |of: fn(&Self) -> f32| all.iter().map(of).sum::<f32>();
        Self::new(sum(|d| d.kept), sum(|d| d.broken), sum(|d| d.unclear))
    }

    /// What is left of the distribution when what the judge says of no work at all is taken out (Zhao et al. 2021, "Calibrate
    /// Before Use"): a model that prefers one word to another does so before it has read anything.
    #[must_use]
    pub fn relative_to(&self, prior: &Self) -> Option<Self> {
        let over = |of: fn(&Self) -> f32| of(self) / of(prior).max(1e-6);
        Self::new(over(|d| d.kept), over(|d| d.broken), over(|d| d.unclear))
    }
}

/// What becomes of the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// It keeps to the constitution.
    Accept,
    /// It does not.
    Reject,
    /// The rules that are unclear would decide: somebody else has to look.
    Refer,
}

/// The part of the work that an opinion rests on, word for word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quote {
    /// As it stands in the work.
    pub text: String,
    /// Its first byte in the work.
    pub start: usize,
    /// Its first line in the work, from 1.
    pub line: usize,
}

/// What one judge thought of one rule, once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GivenOpinion {
    /// The judge.
    pub judge: String,
    /// The how manieth time it was asked, from 0.
    pub sample: u32,
    /// What it found; `None` if it abstained.
    pub finding: Option<Finding>,
    /// How likely it thought each finding.
    pub distribution: Distribution,
    /// Why, in its own words, or why it abstained.
    pub reason: String,
    /// What it rests on.
    pub quote: Option<Quote>,
    /// Whether it decided otherwise than all judges together.
    pub dissents: bool,
}

/// What was found of a rule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleVerdict {
    /// The rule's id.
    pub rule: String,
    /// What it says.
    pub text: String,
    /// How much it matters.
    pub severity: Severity,
    /// How much it counts.
    pub weight: f32,
    /// What all judges together found.
    pub finding: Finding,
    /// How likely they think each finding: the mean over all opinions.
    pub distribution: Distribution,
    /// The probability of the likeliest finding.
    pub confidence: f32,
    /// Why: the reason of the opinion that is surest of the finding.
    pub reason: String,
    /// What that opinion rests on.
    pub quote: Option<Quote>,
    /// Every opinion, in the order of judges and samples.
    pub opinions: Vec<GivenOpinion>,
}

impl RuleVerdict {
    /// The opinions that decided otherwise.
    pub fn dissent(&self) -> impl Iterator<Item = &GivenOpinion> {
        self.opinions.iter().filter(|opinion| opinion.dissents)
    }
}

/// What is found of a work. As JSON it has the names of its fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    /// The constitution's name.
    pub constitution: String,
    /// What becomes of the work.
    pub decision: Decision,
    /// The share of the weight of kept rules, if all unclear ones are broken and if all of them are kept.
    pub score: [f32; 2],
    /// Every rule, in the constitution's order.
    pub rules: Vec<RuleVerdict>,
}

impl Verdict {
    /// Whether an opinion on any rule dissents.
    #[must_use]
    pub fn has_dissent(&self) -> bool {
        self.rules.iter().any(|rule| rule.dissent().next().is_some())
    }
}

/// What follows from findings: the decision and the score. Advisory rules count for neither.
pub(crate) fn decide(rules: &[RuleVerdict], accept_at: f32) -> (Decision, [f32; 2]) {
    let [mut all, mut kept, mut open] = [0.0_f32; 3];
    let mut fatal = [false; 2];
    for rule in rules {
        match (rule.severity, rule.finding) {
            (Severity::Advisory, _) => continue,
            (Severity::Fatal, Finding::Broken) => fatal[0] = true,
            (Severity::Fatal, Finding::Unclear) => fatal[1] = true,
            (Severity::Fatal, Finding::Kept) | (Severity::Serious, _) => {}
        }
        all += rule.weight;
        match rule.finding {
            Finding::Kept => kept += rule.weight,
            Finding::Unclear => open += rule.weight,
            Finding::Broken => {}
        }
    }
    let share = |weight: f32| if all > 0.0 { (weight / all).min(1.0) } else { 1.0 };
    let [low, high] = [share(kept), share(kept + open)];
    // Sums of weights that ought to be equal may differ by a rounding.
    let enough = |share: f32| share >= accept_at - 1e-6;
    let decision = match () {
        () if fatal[0] || !enough(high) => Decision::Reject,
        () if fatal[1] || !enough(low) => Decision::Refer,
        () => Decision::Accept,
    };
    (decision, [low, high])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(severity: Severity, weight: f32, finding: Finding) -> RuleVerdict {
        RuleVerdict {
            rule: "r".into(),
            text: "R".into(),
            severity,
            weight,
            finding,
            distribution: Distribution::unknown(),
            confidence: 1.0,
            reason: String::new(),
            quote: None,
            opinions: Vec::new(),
        }
    }

    #[test]
    fn the_decision_follows_from_the_findings() {
        use Finding::{Broken, Kept, Unclear};
        use Severity::{Advisory, Fatal, Serious};
        let cases: &[(&[RuleVerdict], Decision)] = &[
            (&[rule(Serious, 8.0, Kept), rule(Serious, 2.0, Broken)], Decision::Accept),
            (&[rule(Serious, 7.0, Kept), rule(Serious, 3.0, Broken)], Decision::Reject),
            (&[rule(Serious, 7.0, Kept), rule(Serious, 3.0, Unclear)], Decision::Refer),
            (&[rule(Serious, 8.0, Kept), rule(Serious, 2.0, Unclear)], Decision::Accept),
            (&[rule(Serious, 99.0, Kept), rule(Fatal, 1.0, Broken)], Decision::Reject),
            (&[rule(Serious, 99.0, Kept), rule(Fatal, 1.0, Unclear)], Decision::Refer),
            (&[rule(Serious, 1.0, Broken), rule(Fatal, 1.0, Unclear)], Decision::Reject),
            (&[rule(Advisory, 9.0, Broken), rule(Serious, 1.0, Kept)], Decision::Accept),
            (&[rule(Advisory, 1.0, Broken)], Decision::Accept),
        ];
        for (rules, expected) in cases {
            assert_eq!(decide(rules, 0.8).0, *expected, "{rules:?}");
        }
        let (_, score) = decide(&[rule(Serious, 1.0, Kept), rule(Serious, 3.0, Unclear)], 0.8);
        assert_eq!(score, [0.25, 1.0]);
    }

    #[test]
    fn a_preference_of_the_judge_is_no_evidence() {
        let prior = Distribution::new(0.9, 0.05, 0.05).unwrap();
        let same = prior.relative_to(&prior).unwrap();
        assert!(Finding::ALL.iter().all(|&f| (same.of(f) - 1.0 / 3.0).abs() < 1e-6), "{same:?}");
        let moved = Distribution::new(0.5, 0.45, 0.05).unwrap().relative_to(&prior).unwrap();
        assert_eq!(moved.finding(0.75), Finding::Broken);
        // A prior of nothing does not divide by zero.
        let certain = Distribution::new(1.0, 0.0, 0.0).unwrap();
        assert!(moved.relative_to(&certain).unwrap().confidence() <= 1.0);
    }

    proptest! {
        #[test]
        fn a_distribution_sums_to_one_or_is_none(a in prop::num::f32::ANY, b in prop::num::f32::ANY, c in prop::num::f32::ANY) {
            if let Some(d) = Distribution::new(a, b, c) {
                let sum: f32 = Finding::ALL.iter().map(|&f| d.of(f)).sum();
                prop_assert!((sum - 1.0).abs() < 1e-5);
            }
        }
    }
}
